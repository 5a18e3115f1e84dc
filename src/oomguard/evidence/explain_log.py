"""What a finished log shows: the verdict of `oomguard explain`."""

from __future__ import annotations

from collections.abc import Iterable

from oomguard.evidence.judge import judge
from oomguard.evidence.log import LogScanner
from oomguard.evidence.verdict import Finding, Verdict


def explain(stream: Iterable[bytes], exit_code: int | None = None) -> Verdict:
    """Judge a log by its text alone.

    `stream` gives the log in chunks of any size: `iter(lambda: file.read(1 << 20), b"")`.
    """
    scanner = LogScanner()
    findings: list[Finding] = []
    for chunk in stream:
        findings += scanner.feed(chunk)
    return judge([*findings, *scanner.close()], exit_code)
