"""Training engine, inference and commands of ppx-train. Kept free of imports."""

__version__ = "0.1.0"
