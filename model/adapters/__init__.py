"""Low-rank adapters, and frozen weights in few bits under them. They must not know how they are trained."""
