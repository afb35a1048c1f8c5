"""What happens besides the steps of a run: meters, held-out losses, checkpoints, signals."""
