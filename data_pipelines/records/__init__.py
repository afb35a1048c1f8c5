"""The records that stages pass on: scripts, dialogues, words, turns. It must not know who makes or reads them."""
