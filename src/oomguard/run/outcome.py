"""The results of a run: final config, command and fit-report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from oomguard.adapters.contract import Adapter
from oomguard.job.command import Command
from oomguard.machine.atomic_write import write_text
from oomguard.process.limits import CapBy
from oomguard.run.events import Limits, Status
from oomguard.run.final_plan import final_check, plan_that_fits
from oomguard.run.folder import RunFolder, final_folder, write_json
from oomguard.run.report import FitReport, build, from_json, to_json
from oomguard.run.state import RunRecord
from oomguard.run.verification import Outcome


def write_outcome(
    record: RunRecord, adapter: Adapter, folder: RunFolder
) -> tuple[FitReport, Path | None]:
    """Write the fit-report, and `final/` if the run fits; return the report and final config."""
    folder.release()
    final = final_folder(str(folder.path))
    command = _final_command(record, adapter, final)
    try:
        config = _write_final(record, command, folder)
    except OSError as error:
        folder.miss("the final config", error)
        config = None
    is_moved = record.folder not in (None, str(folder.path))
    report = (
        report_of(record, adapter, folder.path)
        if is_moved
        else build(record, final=command, folder=final)
    )
    try:
        folder.check()
        write_json(folder.report, to_json(report))
    except OSError as error:
        folder.miss("the fit-report", error)
    return report, config


def report_of(record: RunRecord, adapter: Adapter, folder: Path) -> FitReport:
    """Return the report of a run that has ended: a function of its events alone.

    `folder` is the run folder of a record that does not name it, as older ones.
    """
    final = final_folder(record.folder or str(folder))
    return build(record, final=_final_command(record, adapter, final), folder=final)


def read_outcome(
    record: RunRecord, adapter: Adapter, folder: RunFolder
) -> tuple[FitReport, Path | None] | None:
    """Read what `write_outcome` wrote; None if it is missing or of an earlier end of the run."""
    try:
        report = from_json(folder.report.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    if report.status is not record.status or len(report.attempts) != len(record.attempts):
        return None
    if record.status is not Status.FIT or record.job is None:
        return report, None
    config = adapter.write(
        record.job, plan_that_fits(record), final_folder(str(folder.path))
    ).config
    return report, Path(config) if config else None


def _final_command(record: RunRecord, adapter: Adapter, folder: str) -> Command | None:
    if record.status is not Status.FIT or record.job is None:
        return None
    return adapter.write(record.job, plan_that_fits(record), folder).wrapped(record.job.wrapper)


def _write_final(record: RunRecord, command: Command | None, folder: RunFolder) -> Path | None:
    if command is None or record.limits is None:
        return None
    final = folder.final()
    for file in command.files:
        write_text(Path(file.path), file.text)
    lines = [*_cap_lines(record.limits), *_doubts(record), command.by_hand()]
    write_text(final / "command.txt", "\n".join(lines) + "\n")
    return Path(command.config) if command.config else None


def _doubts(record: RunRecord) -> list[str]:
    """Return a comment line with why the config may not fit without oomguard, if it may not."""
    check = final_check(record)
    unsure = check is not None and check.outcome is not Outcome.VERIFIED
    return [f"# not verified: {check.reason}"] if check is not None and unsure else []


def _cap_lines(limits: Limits) -> list[str]:
    """Return comment lines with the caps under which the job fits, to reproduce them manually."""
    lines = []
    if limits.host_memory_bytes is not None and limits.host_memory_by == CapBy.RLIMIT:
        lines.append(
            "# found under: prlimit --data="
            f"{limits.host_memory_bytes} env MALLOC_MMAP_THRESHOLD_=262144 COMMAND"
        )
    elif limits.host_memory_bytes is not None:
        lines.append(f"# found under: a memory cgroup of {limits.host_memory_bytes} bytes")
    if limits.gpu_memory_bytes is not None:
        lines.append(f"# found under: {limits.gpu_memory_bytes} bytes on each GPU")
    return lines
