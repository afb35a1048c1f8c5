"""Voices that a model can be prompted with: their files, folders of them, and clips that become voices.

It knows codecs, and no language model.
"""
