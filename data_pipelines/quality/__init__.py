"""Is it good? Gates for dialogues, checks of shards, reports."""
