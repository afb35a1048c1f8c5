"""Talking to a model: loading an exported folder, conversations from WAV to WAV, their picture.

This room works without the training stack.
"""
