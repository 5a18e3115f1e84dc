"""oomguard brings a fine-tuning job that runs out of memory to the end, and says what it changed."""

__version__ = "0.1.0"
