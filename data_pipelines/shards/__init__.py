"""Dialogues become shards: encoding, packing, the index, and the order in which training reads them."""
