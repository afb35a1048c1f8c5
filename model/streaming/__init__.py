"""One frame at a time: explicit state, caches, sampling, CUDA graphs. It must not know files or training."""
