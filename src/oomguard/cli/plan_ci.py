"""`plan --ci`: one line and an exit code for a pipeline, and GitHub's annotations on the config."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from oomguard.cli.plan_job import PlannedJob
from oomguard.cli.plan_table import show_peak
from oomguard.cli.plan_text import COSTS, show_changes
from oomguard.errors import ExitCode
from oomguard.estimate.memory import Fits
from oomguard.job.plan import Plan, differences
from oomguard.job.unmodelled import Memory
from oomguard.units import show_bytes

#: An absolute folder that is never written: where a changed config would be.
_FOLDER = "/attempt"
_EXIT = {
    Fits.YES: ExitCode.TRAINED,
    Fits.NO: ExitCode.DOES_NOT_FIT,
    Fits.UNSURE: ExitCode.NOT_CERTAIN,
}
_WORDS = {
    Fits.YES: "fits",
    Fits.NO: "does not fit",
    Fits.UNSURE: "is not certain to fit",
}
#: GitHub's level of an annotation.
_LEVEL = {Fits.NO: "error", Fits.UNSURE: "warning"}


def ci_exit(planned: PlannedJob) -> ExitCode:
    """Return 0 only where the requested config is certain to fit."""
    return _EXIT[planned.forecast.asked.fits]


def ci_line(planned: PlannedJob) -> str:
    """Return the verdict on the requested config, and the first change that fits."""
    return f"{_place(planned)}: {_verdict(planned)}"


def github_lines(planned: PlannedJob, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield GitHub's workflow commands on a runner of GitHub Actions, none elsewhere.

    Files are named from the root of the repository, where the runner has checked it out.
    The verdict is on the first line of the config that the first fit changes; each setting that is
    not modelled is on its own line.
    """
    asked = planned.forecast.asked
    if environment.get("GITHUB_ACTIONS") != "true" or asked.fits is Fits.YES:
        return
    fit = planned.forecast.first_fit
    line = first_changed_line(planned, fit.plan) if fit else None
    file = _file(planned, environment.get("GITHUB_WORKSPACE") or planned.prepared.job.cwd)
    yield _annotation(_LEVEL[asked.fits], _verdict(planned), file, line)
    for one in planned.unmodelled:
        if one.memory is Memory.GPU:
            yield _annotation(
                "warning", f"the estimate leaves out {one.key}: {one.effect}", file, one.line
            )


def first_changed_line(planned: PlannedJob, plan: Plan) -> int | None:
    """Return the first line of the config that a plan changes; None without one, or for none."""
    job, adapter = planned.prepared.job, planned.prepared.adapter
    if job.config is None:
        return None
    changed = adapter.write(job, plan, _FOLDER)
    text = next((file.text for file in changed.files if file.path == changed.config), None)
    if text is None:
        return None
    before, after = (job.config.text.splitlines(), text.splitlines())
    for number, (old, new) in enumerate(zip(before, after, strict=False), start=1):
        if old != new:
            return number
    return min(len(before), len(after)) if len(before) != len(after) else None


def _verdict(planned: PlannedJob) -> str:
    found, capacity = planned.forecast, planned.capacity
    asked, fit = found.asked, found.first_fit
    text = f"{_WORDS[asked.fits]}: {show_peak(asked.estimate)}"
    text += f", {show_bytes(capacity.device_bytes)} available"
    if planned.rejected is not None:
        text += f"; {planned.prepared.adapter.title} rejects it: {planned.rejected.message}"
    if capacity.host_bytes is not None and capacity.host_fits(asked.estimate) is not Fits.YES:
        need, have = show_bytes(asked.estimate.host_bytes), show_bytes(capacity.host_bytes)
        text += f"; loading needs {need} of host memory, {have} available"
    missing = dict.fromkeys(one.key for one in planned.unmodelled if one.memory is Memory.GPU)
    if missing:
        text += f"; the estimate leaves out {', '.join(missing)}"
    if asked.fits is not Fits.YES and fit is not None:
        changes = show_changes(differences(asked.plan, fit.plan))
        text += f"; it fits with {changes} [{COSTS[fit.fidelity]}]"
    return text


def _file(planned: PlannedJob, folder: str) -> str | None:
    """Return the config as a path from a folder, where it is in it."""
    config = planned.prepared.job.config
    if config is None:
        return None
    relative = os.path.relpath(config.path, folder)
    return config.path if relative.startswith("..") else Path(relative).as_posix()


def _place(planned: PlannedJob) -> str:
    return _file(planned, planned.prepared.job.cwd) or planned.prepared.job.framework


def _annotation(level: str, message: str, file: str | None, line: int | None) -> str:
    places = {"file": file, "line": line if file else None, "title": "oomguard plan"}
    properties = ",".join(
        f"{name}={_escaped_property(str(value))}" for name, value in places.items() if value
    )
    return f"::{level} {properties}::{_escaped(message)}"


def _escaped(text: str) -> str:
    """Escape the text of a workflow command, as GitHub's toolkit does (core/src/command.ts)."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
