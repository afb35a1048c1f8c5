"""Training of a codec: audio, teachers, losses, and the LightningModule."""
