"""The lines of the reporter inside the job: cut from a stream, parsed and checked.

The protocol is docs/monitor-protocol.md. Whatever does not keep it is refused, never half believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

LINE_BYTES = 64 << 10  # the longest line that the protocol allows, its newline not counted

_Check = Callable[[object], bool]


class Lines:
    """Cuts a byte stream into lines in bounded memory; longer lines are dropped and counted."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._skipping = False
        self.dropped = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each line that `data` completes, without its newline."""
        *ends, rest = data.split(b"\n")
        for end in ends:
            line = self._extend(end)
            self._rest, self._skipping = bytearray(), False
            if line:
                yield bytes(line)
        self._extend(rest)

    def _extend(self, data: bytes) -> bytearray:
        if not self._skipping:
            self._rest += data
            if len(self._rest) > LINE_BYTES:
                self._rest, self._skipping = bytearray(), True
                self.dropped += 1
        return self._rest


def parse(line: bytes) -> Mapping[str, object] | None:
    """Read one line as a message, or None where it is none. Fields not known here are kept."""
    try:
        message: Any = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict) or not _holds(_COMMON, message):
        return None
    return message if _holds(_FURTHER[message["type"]], message) else None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _holds(checks: Mapping[str, _Check], message: Mapping[str, object]) -> bool:
    return all(name in message and check(message[name]) for name, check in checks.items())


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _one_of(*known: object) -> _Check:
    # By type too: True == 1 == 1.0.
    return lambda value: any(type(value) is type(one) and value == one for one in known)


def _maybe(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _list_of(check: _Check) -> _Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _shapes(value: object) -> bool:
    return isinstance(value, dict) and all(map(_list_of(_count), value.values()))


def _memory(value: object) -> bool:
    # Empty where the line would have been too long.
    return isinstance(value, dict) and (not value or _holds(_MEMORY, value))


def _device(value: object) -> bool:
    return isinstance(value, dict) and _holds(_DEVICE, value)


_DEVICE: Mapping[str, _Check] = {
    "device": _count,
    **dict.fromkeys(
        (
            "allocated_bytes",
            "reserved_bytes",
            "peak_allocated_bytes",
            "peak_reserved_bytes",
            "free_bytes",
            "total_bytes",
        ),
        _maybe(_count),
    ),
}
_MEMORY: Mapping[str, _Check] = {
    "rss_bytes": _maybe(_count),
    "peak_rss_bytes": _maybe(_count),
    "cuda": _list_of(_device),
}
_FURTHER: Mapping[str, Mapping[str, _Check]] = {
    "hello": {"argv0": _maybe(_text), "python": _text, "torch": _maybe(_text), "ppid": _integer},
    "step": {"memory": _maybe(_memory), "seconds": _maybe(_number), "shapes": _maybe(_shapes)},
    "phase": {"memory": _maybe(_memory)},
    "oom": {
        "exception": _text,
        "message": _text,
        "uncaught": _flag,
        "frames": _list_of(_text),
        "memory": _maybe(_memory),
        "shapes": _maybe(_shapes),
        "device": _one_of("cuda", "cpu", None),
        "requested_bytes": _maybe(_count),
        "capacity_bytes": _maybe(_count),
    },
    "error": {"exception": _text, "message": _text, "frames": _list_of(_text)},
    "fault": {"message": _text},
    "probe": {"memory": _memory, "tokens": _maybe(_count), "longest": _maybe(_count)},
    "bye": {"memory": _maybe(_memory)},
}
_PHASES = ("launch", "load", "preprocess", "forward", "backward", "optimizer", "eval", "save")
_COMMON: Mapping[str, _Check] = {
    "v": _one_of(1),
    "type": _one_of(*_FURTHER),
    "pid": _count,
    "rank": _maybe(_integer),
    "local_rank": _maybe(_integer),
    "world": _maybe(_integer),
    "t": _number,
    "phase": _one_of(*_PHASES, "unknown"),
    "step": _count,
}
