"""The network and what runs it: backbone, streaming, prompt, weights, codec.

It must not know data on disk or training.
"""
