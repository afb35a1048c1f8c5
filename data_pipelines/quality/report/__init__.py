"""One HTML page about shards or dialogues: table, charts, players. It must not judge what it shows."""
