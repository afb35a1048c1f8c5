"""What is said, when, and by whom: recognition and forced alignment."""
