"""Traces training steps on fake tensors and replays their allocations: one request, one answer."""
