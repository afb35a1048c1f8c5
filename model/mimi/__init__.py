"""The Mimi codec (arXiv 2410.00037): 24 kHz audio to 12.5 Hz residual codes and back.

It must not know the language model.
"""
