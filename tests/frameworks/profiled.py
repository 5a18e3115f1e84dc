"""What torch's profiler saw allocated and released."""

from __future__ import annotations

from typing import Any


def most(measured: Any) -> int:
    """Give the most bytes that were alive at once, of those allocated under the profiler."""
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in measured.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    current = most = 0
    for _, size_bytes in changes:
        current += size_bytes
        most = max(most, current)
    return most
