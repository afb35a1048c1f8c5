"""Recordings that people have: other data sets' formats in, and out again."""
