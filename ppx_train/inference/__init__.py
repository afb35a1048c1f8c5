"""Talking to a model: loading an exported folder, wav to wav, and a picture of the conversation.

Nothing here imports the training stack.
"""
