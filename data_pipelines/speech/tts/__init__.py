"""Speech engines: text in, mono audio with word times out."""
