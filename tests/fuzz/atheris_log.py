"""Fuzz the log classifier with coverage: `python atheris_log.py corpus/ -max_total_time=120`.

Needs atheris, which installs where a wheel of it exists. What it finds goes into `corpus/`, which
`test_fuzz.py` reads again without it.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["oomguard"]):
    from oomguard.evidence.judge import judge
    from oomguard.evidence.log import LogScanner


def one(data: bytes) -> None:
    """Read a log whole and in two pieces: both say the same, and a verdict follows."""
    if not data:
        return
    cut = data[0] * len(data) // 256
    whole, pieces = LogScanner(), LogScanner()
    findings = [*whole.feed(data), *whole.close()]
    again = [*pieces.feed(data[:cut]), *pieces.feed(data[cut:]), *pieces.close()]
    if again != findings:
        raise AssertionError("the findings depend on where the log was cut")
    judge(findings, data[-1] - 128)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
