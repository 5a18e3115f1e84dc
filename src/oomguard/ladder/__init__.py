"""The ladder of strategies: what a strategy is, the order, and the next one to try."""
