"""Shards of encoded dialogues: packing, index, manifest, order. It must not know how the dialogues were made."""
