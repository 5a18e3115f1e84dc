"""What models look like: their configs, found locally, shipped with oomguard, or on the hub."""
