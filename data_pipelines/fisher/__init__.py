"""Importer of Fisher English, two-channel telephone conversations of the Linguistic Data Consortium."""
