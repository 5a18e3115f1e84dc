"""The loop: what happened, what to do about it, doing it."""
