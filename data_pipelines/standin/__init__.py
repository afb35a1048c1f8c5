"""A small corpus in Fisher's layout, to try the import without the corpus. Nothing else may need it."""
