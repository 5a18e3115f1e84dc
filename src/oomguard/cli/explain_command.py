"""`oomguard explain`: diagnose why a job failed from its log."""

from __future__ import annotations

import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click
import msgspec

from oomguard import present
from oomguard.cli.compressed import opened
from oomguard.cli.log_folder import judge_folder
from oomguard.cli.next_steps import Failed, next_steps
from oomguard.cli.output import echo, print_json
from oomguard.errors import LogError, Where
from oomguard.evidence.judge import judge_log
from oomguard.evidence.verdict import Finding, Verdict
from oomguard.units import show_bytes

if TYPE_CHECKING:  # adapters are imported where their settings are shown
    from oomguard.adapters.contract import Adapter

CHUNK_BYTES = 1 << 20
_END_BYTES = 1 << 18  # of the log, at either end, in which its framework is looked for


@dataclass(slots=True)
class _Framework:
    """Finds the framework in what the logs begin and end with: commands there, frames here."""

    found: Adapter | None = None
    head: bytes = field(default=b"", repr=False)
    tail: bytes = field(default=b"", repr=False)

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the chunks of a log, and keep its ends; look into those of the one before."""
        self.find()
        self.head = self.tail = b""
        for chunk in chunks:
            if len(self.head) < _END_BYTES:
                self.head = (self.head + chunk)[:_END_BYTES]
            self.tail = (self.tail + chunk)[-_END_BYTES:]
            yield chunk

    def find(self) -> Adapter | None:
        """Return the framework of the logs so far, None if they do not tell it."""
        if self.found is None and self.tail:
            from oomguard.adapters.in_logs import framework_in_log  # noqa: PLC0415

            texts = (end.decode("utf-8", "replace") for end in (self.head, self.tail))
            self.found = next(filter(None, map(framework_in_log, texts)), None)
        return self.found


@click.command("explain")
@click.argument("log", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--exit-code", type=int, metavar="N", help="Exit code of the job, if known.")
@click.option(
    "--framework",
    metavar="NAME",
    help="Framework whose settings to show, if the log does not tell it.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Training config of the job, to show the strategies in its own values.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
def command(
    log: Path, exit_code: int | None, framework: str | None, config: Path | None, as_json: bool
) -> None:
    """Diagnose why a job failed from its LOG.

    A folder is read as the logs of the ranks of one job; - reads stdin.
    """
    told = _Framework(_named(framework) if framework else None)
    if present.is_folder(log):
        story = judge_folder(log, lambda path: _judge(path, exit_code, told))
        verdict, files = story.verdict, story.files
    else:
        verdict, files = _judge(log, exit_code, told), ()
    if as_json:
        print_json(_document(verdict, files))
    else:
        useful = config is not None or verdict.kind.is_memory
        _print(verdict, files, _failed(told, framework, config) if useful else Failed())


def _named(framework: str) -> Adapter:
    from oomguard.adapters.registry import adapter_named  # noqa: PLC0415

    return adapter_named(framework)


def _failed(told: _Framework, framework: str | None, config: Path | None) -> Failed:
    """Return what is known of the job: its framework by its log, or the job by its config."""
    if config is None:
        return Failed(told.find())
    from oomguard.cli.prepare import prepare  # noqa: PLC0415
    from oomguard.machine.gpus import gpus  # noqa: PLC0415

    given = {"framework": framework} if framework else {}
    prepared = prepare(config, (), given, planned_gpus=max(1, len(gpus())))
    return Failed(prepared.adapter, prepared.job)


def _judge(log: Path, exit_code: int | None, told: _Framework) -> Verdict:
    try:
        with _open(log) as stream:
            return judge_log(told.watch(_chunks(stream)), exit_code)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise LogError(f"the log cannot be read: {reason}", where=Where(file=str(log))) from error


def _document(verdict: Verdict, files: Sequence[str]) -> object:
    """Return what is printed as JSON; in a folder each piece of evidence names its file."""
    if not files:
        return verdict
    document = msgspec.to_builtins(verdict)
    document["evidence"] = [
        {"file": file, **row} for file, row in zip(files, document["evidence"], strict=True)
    ]
    return document


@contextmanager
def _open(log: Path) -> Iterator[IO[bytes]]:
    """Open a log, or stdin, as what it holds uncompressed."""
    piped = str(log) == "-"
    with nullcontext(sys.stdin.buffer) if piped else log.open("rb") as file:
        yield opened(file, "stdin" if piped else str(log))


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def _print(verdict: Verdict, files: Sequence[str], failed: Failed) -> None:
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
    for place, finding in enumerate(verdict.evidence):
        file = f"{files[place]}: " if files else ""
        echo(f"  {_place(finding):<10} {file}{finding.text}")
    steps = next_steps(verdict, failed)
    if steps:
        echo("next:")
    for step in steps:
        echo(f"  {step}")


def _size(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else f"{show_bytes(size_bytes)} ({size_bytes} bytes)"


def _place(finding: Finding) -> str:
    return f"line {finding.line}" if finding.line is not None else finding.witness.value
