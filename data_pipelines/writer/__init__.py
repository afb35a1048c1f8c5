"""Writes two-speaker scripts from tables and templates: customer service and a teacher answering questions."""

from data_pipelines.writer.synth import write_scripts

__all__ = ["write_scripts"]
