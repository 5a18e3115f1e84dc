"""oomguard brings a fine-tuning job that runs out of memory to the end, and says what changed."""

__version__ = "0.1.0"
