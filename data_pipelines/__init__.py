"""From raw material to trusted shards: writers, speech, Fisher, alignment, shards, sample order."""
