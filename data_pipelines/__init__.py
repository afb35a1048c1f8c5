"""From raw speech and text to shards of training data. It must not know how a model is trained or served."""
