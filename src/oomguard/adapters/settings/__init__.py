"""Every setting of each framework: read, of no effect on memory, or of one not predicted."""
