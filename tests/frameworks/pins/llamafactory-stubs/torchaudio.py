"""Stands in for torchaudio, which LLaMA-Factory imports and text training never calls."""

__version__ = "0"
