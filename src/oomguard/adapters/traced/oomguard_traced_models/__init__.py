"""Models of frameworks that have model code of their own, built on fake tensors for the tracer."""
