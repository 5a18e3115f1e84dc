"""Read and edit config files and command-line flags in place."""
