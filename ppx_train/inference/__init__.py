"""Talking to a model: loading an exported folder, conversations from WAV to WAV, their picture.

It must not need the training stack.
"""
