"""A run: model, data, loss, optimiser, checkpoints. It must not know export or inference."""
