"""The Moshi/PersonaPlex architecture: backbone, streaming, prompt contract and the Mimi codec."""
