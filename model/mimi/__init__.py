"""The Mimi codec (Moshi paper, arXiv 2410.00037): 24 kHz audio to 12.5 Hz residual codes and back."""
