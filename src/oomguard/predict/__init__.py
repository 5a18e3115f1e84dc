"""Predicts memory before a launch: the tracer as a child process, its cache, the whole ladder."""
