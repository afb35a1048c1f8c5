"""Where the jobs of a stage run: in local processes or on a Ray cluster. It must not know what the jobs do."""
