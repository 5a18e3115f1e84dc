"""oomguard gets a fine-tuning job that runs out of memory to complete, and reports what changed."""

__version__ = "0.1.0"
