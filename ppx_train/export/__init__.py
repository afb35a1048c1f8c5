"""A checkpoint becomes a folder in a public layout, with card, voices and checksums. Training must not need it."""
