"""`oomguard reproduce`: run the final config of a fit-report again, on this machine."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from oomguard import present
from oomguard.cli.collect_provenance import data_of, environment_of
from oomguard.cli.console import Console
from oomguard.cli.difference_lines import difference_line, meaning
from oomguard.cli.launch_command import supervise
from oomguard.cli.options import as_json, report_place
from oomguard.cli.output import echo, print_json
from oomguard.cli.plan_text import counted
from oomguard.cli.prepare import Prepared, prepare
from oomguard.cli.reproduced_files import (
    final_place,
    find_root,
    in_folder,
    missing_files,
    needed_files,
    write_files,
)
from oomguard.cli.summary import print_summary
from oomguard.errors import ExitCode, RunFolderError, UsageError, Where
from oomguard.job.plan import differences
from oomguard.job.provenance import DataFingerprint, Environment
from oomguard.ladder.load import load_strategies
from oomguard.machine.interpreter import known_python
from oomguard.redact import MASK
from oomguard.run.compare import (
    Difference,
    Section,
    compare,
    data_differences,
    environment_differences,
    known_sections,
)
from oomguard.run.events import Limits, Status
from oomguard.run.past_runs import stored_report
from oomguard.run.report import FitReport
from oomguard.run.reproduction import Reproduction
from oomguard.units import show_bytes

ACCEPT = "--accept-changes"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """How this machine compares with the recorded one.

    `problems` stop a launch, unless they are accepted; `notes` do not.
    """

    differences: tuple[Difference, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a report is reproduced: `words` is the whole command, `missing` what is not there."""

    report: FitReport
    root: Path
    folder: Path
    found: Reproduction
    words: tuple[str, ...]
    missing: tuple[str, ...]


@click.command("reproduce")
@click.argument("report", type=click.Path(path_type=Path))
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that the job runs in (default: this folder or one above the report, whichever "
    "has the job's script and data).",
)
@click.option(
    "--python",
    metavar="PATH",
    help="Python interpreter of the environment that the framework is installed in.",
)
@click.option("--dry-run", is_flag=True, help="Show command and differences; launch nothing.")
@click.option(ACCEPT, "accept", is_flag=True, help="Launch although data or batch differ.")
@as_json
def command(
    *,
    report: Path,
    root: Path | None,
    python: str | None,
    dry_run: bool,
    accept: bool,
    as_json: bool,
) -> int:
    """Launch the final config of a fit-report on this machine, and compare.

    REPORT is a fit-report.json, a run folder, or its name under oomguard-runs. Differences in
    environment and data are listed with what they mean; other data stop the launch. What a report
    says is run: reproduce none that you do not trust.
    """
    place = report_place(report)
    recorded = stored_report(place)
    needed = needed_files(recorded, _reproduction(recorded, place))
    home = find_root(place, needed, root)
    python = os.path.abspath(python) if python else None  # noqa: PTH100  a link stays a link
    with in_folder(home):
        where = _at(recorded, home, python)
        if dry_run:
            return _dry_run(where, python, as_json=as_json)
        if where.missing:
            raise _missing(where)
        write_files(where.found, where.folder)
        _check_secrets(where)
        return _launch(where, python, accept=accept, as_json=as_json)


def _reproduction(report: FitReport, place: Path) -> Reproduction:
    if report.reproduction is not None:
        return report.reproduction
    where = Where(file=str(place))
    if report.status is not Status.FIT:
        raise RunFolderError(
            f"this run found no config that fits ({report.status.value}), so there is none to "
            "reproduce",
            where=where,
            next_step="Launch the requested config again: oomguard launch TRAIN.YAML",
        )
    raise RunFolderError(
        f"this report is of oomguard {report.oomguard}, which did not record what reproduces it "
        f"(schema version {report.schema_version})",
        where=where,
        next_step="Run the command that it shows (oomguard report RUN), or launch the job again.",
    )


def _at(report: FitReport, root: Path, python: str | None, *, folder: Path | None = None) -> _Place:
    """Return where it is reproduced; `folder` is the one for its config, if it is not kept."""
    found = report.reproduction or Reproduction(argv=())
    folder = folder or final_place(root, report)
    recorded = report.environment.executable if report.environment else ""
    there = found.at(job=str(root), final=str(folder), python=python or known_python(recorded))
    missing = missing_files(root, needed_files(report, found))
    return _Place(
        report=report, root=root, folder=folder, found=there, words=_words(there), missing=missing
    )


def _words(found: Reproduction) -> tuple[str, ...]:
    """Return the command; a variable whose value was masked has to be set already."""
    env = [f"{name}={value}" for name, value in sorted(found.env.items()) if MASK not in value]
    first, *rest = found.argv
    program = Path(first)
    if program.is_absolute() and not present.exists(program):  # that machine's environment
        first = program.name
    return (*(("env", *env) if env else ()), first, *rest)


# --- Before the launch ---


def _missing(where: _Place) -> UsageError:
    return UsageError(
        f"the job's folder lacks {', '.join(where.missing)}",
        where=Where(file=str(where.root)),
        next_step="Copy what is missing there, or pass the job's folder: --root DIR.",
    )


def _check_secrets(where: _Place) -> None:
    """Raise if a secret that the report does not hold is needed."""
    for name, value in where.found.env.items():
        if MASK in value and name not in os.environ:
            raise UsageError(
                f"the report does not hold the secret in {name}", next_step=f"Set {name} and retry."
            )
    if any(MASK in word for word in where.words):
        raise UsageError(
            f"a secret in the command was masked: {shlex.join(where.words)}",
            next_step="Launch it with the secret: oomguard launch -- COMMAND",
        )
    for file in where.found.files:
        if MASK in Path(file.path).read_text(encoding="utf-8", errors="surrogateescape"):
            raise UsageError(
                "a secret in the config was masked",
                where=Where(file=file.path),
                next_step="Put it there in place of ***, and retry.",
            )


def _prepared(where: _Place, python: str | None) -> Prepared:
    """Return the job as it would run here, with the limits of the recorded run."""
    limits = where.report.limits
    given = {
        "framework": where.report.framework,
        "python": python,
        "ladder": _ladder(limits),
        "allow": limits.allow.value,
        "max_attempts": limits.max_attempts,
        "host_memory_bytes": limits.host_memory_bytes,
        "host_memory_by": limits.host_memory_by,
        "gpu_memory_bytes": limits.gpu_memory_bytes,
        "hang_timeout_s": limits.hang_timeout_s,
        "relax": limits.relax,
        "in_place": limits.in_place,
        "grace_s": limits.grace_s,
        "monitor": limits.inside,
        "predict": False,
    }
    return prepare(None, where.words, given)


def _ladder(limits: Limits) -> str | None:
    """Return the recorded strategies that are known here; own ones are not in a report."""
    known = {strategy.id for strategy in load_strategies()}
    return ",".join(name for name in limits.ladder if name in known) or None


def _checked(where: _Place, prepared: Prepared) -> _Checked:
    report, job = where.report, prepared.job
    environment, data = environment_of(job), data_of(job, prepared.adapter)
    found: list[Difference] = []
    notes: list[str] = []
    problems = []
    if report.environment is None:
        notes.append("the report does not record the environment")
    else:
        found += environment_differences(report.environment, environment)
        notes += _too_small(report, environment)
    if report.data is None:
        notes.append("the report does not record the data, so it is not known whether they differ")
    else:
        of_data = list(data_differences(report.data, data or DataFingerprint()))
        found += of_data
        problems += [f"the data differ: {difference_line(one)}" for one in of_data]
    if job.global_batch != report.global_batch:
        problems.append(
            f"the global batch would be {job.global_batch} instead of {report.global_batch}: "
            f"{counted(job.world.size, 'process', 'processes')} here, {report.world.size} recorded"
        )
    if report.final is not None:
        found += [
            Difference(section=Section.FINAL, name=one.field, before=one.before, after=one.after)
            for one in differences(report.final, job.asked)
        ]
    notes += _notes_on(prepared)
    return _Checked(differences=tuple(found), problems=tuple(problems), notes=tuple(notes))


def _too_small(report: FitReport, here: Environment) -> Iterator[str]:
    """Yield that the GPUs here have less memory than the recorded run reserved."""
    last = report.attempts[-1]
    least = min((gpu.total_bytes for gpu in here.gpus), default=None)
    if least is None or last.reserved_peak_bytes is None:
        return
    taken = last.reserved_peak_bytes + (last.context_bytes or 0)
    if taken > least:
        yield (
            f"it is not expected to fit as it is: the recorded run took {show_bytes(taken)} on a "
            f"GPU, the smallest here has {show_bytes(least)}"
        )


def _notes_on(prepared: Prepared) -> Iterator[str]:
    """Yield what is not compared, and what the job would find."""
    model, output = prepared.adapter.memory_settings(prepared.job).model, prepared.job.output_dir
    if model is not None:
        yield f"the weights of the model are not compared: {model}"
    if output is not None and present.is_folder(Path(output)) and any(Path(output).iterdir()):
        yield f"the job writes into {output}, which is not empty"


def _lines(where: _Place, checked: _Checked) -> Iterator[str]:
    yield f"reproducing {where.report.run} of {where.report.at} in {where.root}"
    config = where.found.config
    if config and any(config in word for word in where.words):  # not where its keys are flags
        yield f"config   {config}"
    yield f"command  {shlex.join(where.words)}"
    for one in checked.differences:
        means = meaning(one)
        yield f"differs: {difference_line(one)}" + (f" ({means})" if means else "")
    if not checked.differences:
        yield "nothing that was recorded differs"
    yield from (f"note: {note}" for note in checked.notes)


# --- Shown, or launched ---


def _problems(where: _Place, checked: _Checked) -> list[str]:
    return [*(f"{path} is missing" for path in where.missing), *checked.problems]


def _document(where: _Place, checked: _Checked) -> dict[str, object]:
    return {
        "run": where.report.run,
        "root": str(where.root),
        "config": where.found.config,
        "command": list(where.words),
        "differences": checked.differences,
        "problems": _problems(where, checked),
        "notes": checked.notes,
    }


def _dry_run(where: _Place, python: str | None, *, as_json: bool) -> int:
    """Show what would be launched; the files are written for a moment, as the job is read."""
    with tempfile.TemporaryDirectory(prefix="oomguard-") as beside:
        copy = _at(where.report, where.root, python, folder=Path(beside))
        write_files(copy.found, copy.folder)
        checked = _checked(where, _prepared(copy, python))
    if as_json:
        print_json({**_document(where, checked), "launched": False})
    else:
        for line in _lines(where, checked):
            echo(line)
        for problem in _problems(where, checked):
            echo(f"problem: {problem}")
    return ExitCode.USAGE if _problems(where, checked) else ExitCode.TRAINED


def _launch(where: _Place, python: str | None, *, accept: bool, as_json: bool) -> int:
    console = Console(quiet_stdout=as_json)
    prepared = _prepared(where, python)
    checked = _checked(where, prepared)
    for line in _lines(where, checked):
        console.say(line)
    if checked.problems and not accept:
        raise UsageError(
            "; ".join(checked.problems),
            where=Where(file=str(where.root)),
            next_step=f"Restore them, or launch all the same: {ACCEPT}",
        )
    record, outcome, folder = supervise(prepared, console)
    report, _ = outcome
    for line in _compared(where.report, report):
        console.say(line)
    extra = {"reproduction": _document(where, checked)}
    return print_summary(console, record, outcome, folder, as_json=as_json, extra=extra)


def _compared(recorded: FitReport, report: FitReport) -> Iterator[str]:
    """Yield how the result compares with the recorded one."""
    found = compare(recorded, report).differences
    for section in (Section.FINAL, Section.PEAKS, Section.LOSS):
        of_section = [difference_line(one) for one in found if one.section is section]
        known = section in known_sections(recorded) & known_sections(report)
        result = (", ".join(of_section) or "as recorded") if known else "not known in both runs"
        yield f"{section.value}: {result}"
