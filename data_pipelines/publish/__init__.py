"""Shards as data sets for other tools and for the hub, with cards and licences. It must not change what is in them."""
