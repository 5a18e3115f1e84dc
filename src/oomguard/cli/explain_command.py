"""`oomguard explain`: diagnose why a job failed from its log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

import click

from oomguard.cli.output import echo, print_json
from oomguard.errors import LogError, Where
from oomguard.evidence.judge import judge_log
from oomguard.evidence.verdict import Finding, Verdict
from oomguard.units import show_bytes

CHUNK_BYTES = 1 << 20


@click.command("explain")
@click.argument("log", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--exit-code", type=int, metavar="N", help="Exit code of the job, if known.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
def command(log: Path, exit_code: int | None, as_json: bool) -> None:
    """Diagnose why a job failed from its LOG (- for stdin)."""
    try:
        with _open(log) as stream:
            verdict = judge_log(_chunks(stream), exit_code)
    except OSError as error:
        raise LogError(
            f"the log cannot be read: {error.strerror or error}", where=Where(file=str(log))
        ) from error
    if as_json:
        print_json(verdict)
    else:
        _print(verdict)


def _open(log: Path) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if str(log) == "-" else log.open("rb")


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def _print(verdict: Verdict) -> None:
    echo(f"{verdict.kind.value} ({verdict.confidence.value} confidence)")
    rows = {
        "cause": verdict.cause.value,
        "phase": verdict.phase.value,
        "rank": verdict.rank,
        "step": verdict.step,
        "requested": _size(verdict.requested_bytes),
        "capacity": _size(verdict.capacity_bytes),
        "root": verdict.root,
    }
    for name, value in rows.items():
        if value is not None and value != "unknown":
            echo(f"  {name:<10} {value}")
    for finding in verdict.evidence:
        echo(f"  {_place(finding):<10} {finding.text}")


def _size(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else f"{show_bytes(size_bytes)} ({size_bytes} bytes)"


def _place(finding: Finding) -> str:
    return f"line {finding.line}" if finding.line is not None else finding.witness.value
