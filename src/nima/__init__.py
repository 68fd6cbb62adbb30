"""Nima: language models trained as a pipeline of reproducible DVC stages."""

__version__ = "0.1.0"
