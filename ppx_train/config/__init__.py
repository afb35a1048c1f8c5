"""The configuration of a run: its records, and how they are filled from files and the command line."""
