"""Speech engines, each behind a protocol of speech/protocols.py. They must not know scripts or dialogues."""
