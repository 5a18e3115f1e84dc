"""This machine: GPUs, cgroups, Python interpreters, checkpoints on disk."""
