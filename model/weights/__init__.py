"""Weights on disk and on the hub: names, layouts, reading piece by piece. It must not know the codec or adapters."""
