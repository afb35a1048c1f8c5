"""Recordings that people have become dialogues, from five formats. It must not know synthetic speech or shards."""
