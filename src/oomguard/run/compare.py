"""What differs between two runs: what was requested, what it ran on, and how it went. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum

import msgspec

from oomguard.job.plan import Plan, Value, differences
from oomguard.job.provenance import DataFile, DataFingerprint, Environment
from oomguard.run.report import AttemptReport, FitReport


class Section(str, Enum):
    """What a difference is about."""

    REQUESTED = "requested"  # the plan that the user's config describes
    LIMITS = "limits"  # options of oomguard
    FINAL = "final"  # the plan that fits
    ENVIRONMENT = "environment"
    DATA = "data"
    OUTCOME = "outcome"
    PEAKS = "peaks"  # of the last attempt
    LOSS = "loss"  # of the last attempt


class Weight(str, Enum):
    """What a difference means for a run that is repeated."""

    RESULT = "result"  # other code, data or numerics: another loss
    MEMORY = "memory"  # it may not fit, or the same plan takes another amount
    LITTLE = "little"  # neither is expected to change


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A value that differs between two runs; None is not there, or not known.

    `weight` is None where the value is a result and no cause.
    """

    section: Section
    name: str
    before: Value
    after: Value
    weight: Weight | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All differences of two runs; `config_diff` is that of their final configs.

    `unknown` is what could not be compared, and why.
    """

    before: str
    after: str
    differences: tuple[Difference, ...]
    config_diff: str | None = None
    unknown: tuple[str, ...] = ()


def compare(before: FitReport, after: FitReport) -> Comparison:
    """Return what differs between the reports of two runs."""
    return Comparison(
        before=before.run,
        after=after.run,
        differences=tuple(_differences(before, after)),
        config_diff=_config_diff(before, after),
        unknown=tuple(dict.fromkeys(_unknown(before, after))),
    )


def _differences(before: FitReport, after: FitReport) -> Iterator[Difference]:
    yield from _pairs(Section.REQUESTED, _job(before), _job(after))
    yield from _plans(Section.REQUESTED, before.asked, after.asked)
    yield from _pairs(Section.LIMITS, _builtins(before.limits), _builtins(after.limits))
    if before.final is not None and after.final is not None:
        yield from _plans(Section.FINAL, before.final, after.final)
    if before.environment is not None and after.environment is not None:
        yield from environment_differences(before.environment, after.environment)
    if before.data is not None and after.data is not None:
        yield from data_differences(before.data, after.data)
    yield from _pairs(Section.OUTCOME, _outcome(before), _outcome(after))
    yield from _pairs(Section.PEAKS, _peaks(before), _peaks(after))
    yield from _pairs(Section.LOSS, _losses(before), _losses(after))


def _unknown(before: FitReport, after: FitReport) -> Iterator[str]:
    for report in (before, after):
        for name, value in (("environment", report.environment), ("data", report.data)):
            if value is None:
                yield f"{name}: not recorded for {report.run}"
        if report.final is None:
            yield f"final config: {report.run} found none that fits"


def _pairs(
    section: Section, before: Mapping[str, Value], after: Mapping[str, Value]
) -> Iterator[Difference]:
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name), after.get(name)
        if one != other:
            yield Difference(section=section, name=name, before=one, after=other)


def _plans(section: Section, before: Plan, after: Plan) -> Iterator[Difference]:
    for change in differences(before, after):
        yield Difference(
            section=section, name=change.field, before=change.before, after=change.after
        )


def _builtins(value: object) -> dict[str, Value]:
    plain: dict[str, Value] = msgspec.to_builtins(value)
    return plain


# --- Of one run ---


def _job(report: FitReport) -> dict[str, Value]:
    return {
        "framework": report.framework,
        "device": report.device.value,
        "processes": report.world.size,
        "global_batch": report.global_batch,
    }


def _outcome(report: FitReport) -> dict[str, Value]:
    verdict = report.attempts[-1].verdict if report.attempts else None
    return {
        "oomguard": report.oomguard,
        "status": report.status.value,
        "reason": report.reason,
        "attempts": len(report.attempts),
        "verdict": verdict.kind.value if verdict else None,
        "phase": verdict.phase.value if verdict and verdict.kind.is_memory else None,
        "fidelity": report.fidelity.value if report.fidelity else None,
        "optimizer_steps": report.attempts[-1].optimizer_steps if report.attempts else None,
        "seconds": None if report.seconds is None else round(report.seconds),
    }


#: Peaks of an attempt, in bytes.
_PEAKS = ("device_peak_bytes", "reserved_peak_bytes", "host_peak_bytes", "data_peak_bytes")


def _peaks(report: FitReport) -> dict[str, Value]:
    if not report.attempts:
        return {}
    last = report.attempts[-1]
    predicted = last.predicted.expected_bytes if last.predicted else None
    return {**{name: getattr(last, name) for name in _PEAKS}, "predicted_bytes": predicted}


def known_sections(report: FitReport) -> frozenset[Section]:
    """Return which results are known of a run."""
    known = {
        Section.FINAL: report.final is not None,
        Section.PEAKS: any(_peaks(report).get(name) for name in _PEAKS),
        Section.LOSS: _last_with_loss(report) is not None,
    }
    return frozenset(section for section, is_known in known.items() if is_known)


def _last_with_loss(report: FitReport) -> AttemptReport | None:
    """Return the last attempt whose loss is known."""
    return next((one for one in reversed(report.attempts) if one.loss is not None), None)


def _losses(report: FitReport) -> dict[str, Value]:
    attempt = _last_with_loss(report)
    return _builtins(attempt.loss) if attempt else {}


def _config_diff(before: FitReport, after: FitReport) -> str | None:
    """Return the unified diff of the final configs, None where one is not known."""
    one, other = _config(before), _config(after)
    if one is None or other is None:
        return None
    lines = difflib.unified_diff(
        one.splitlines(keepends=True),
        other.splitlines(keepends=True),
        fromfile=before.run,
        tofile=after.run,
    )
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


def _config(report: FitReport) -> str | None:
    found = report.reproduction
    if found is None:
        return None
    return next((file.text for file in found.files if file.path == found.config), None)


# --- Environment and data ---


def environment_differences(before: Environment, after: Environment) -> Iterator[Difference]:
    """Yield what differs between two environments; paths and unknown values do not count."""
    for name, weight in _WEIGHTS.items():
        one, other = _fact(before, name), _fact(after, name)
        if one is not None and other is not None and one != other:
            yield _environment(name, one, other, weight)
    if before.python and after.python:  # else they did not answer
        for name in sorted({*before.packages, *after.packages}):
            one, other = before.packages.get(name), after.packages.get(name)
            if one != other:
                yield _environment(name, one, other, Weight.RESULT)
    if before.git is not None and after.git is not None:
        for field in fields(before.git):
            was, now = getattr(before.git, field.name), getattr(after.git, field.name)
            if was != now:
                yield _environment(f"git_{field.name}", was, now, Weight.RESULT)


#: What a difference of a fact means; packages and git are compared one by one.
_WEIGHTS = {
    "gpus": Weight.MEMORY,
    "host_memory_bytes": Weight.MEMORY,
    "cuda": Weight.MEMORY,
    "python": Weight.LITTLE,
    "driver": Weight.LITTLE,
    "system": Weight.LITTLE,
}


def _fact(environment: Environment, name: str) -> Value:
    if name == "gpus":
        return [gpu.name for gpu in environment.gpus]
    value: Value = getattr(environment, name)
    return value or None


def _environment(name: str, before: Value, after: Value, weight: Weight) -> Difference:
    return Difference(
        section=Section.ENVIRONMENT, name=name, before=before, after=after, weight=weight
    )


def data_differences(before: DataFingerprint, after: DataFingerprint) -> Iterator[Difference]:
    """Yield each file that is not the same, and a seed that differs."""
    was, now = _by_path(before), _by_path(after)
    for path in dict.fromkeys([*was, *now]):
        one, other = was.get(path), now.get(path)
        if one is None or other is None or not _same(one, other):
            yield _data(path, _identity(one), _identity(other))
    if before.left_out != after.left_out:
        yield _data("further files", before.left_out, after.left_out)
    if before.elsewhere != after.elsewhere:
        yield _data("not local", list(before.elsewhere), list(after.elsewhere))
    if before.seed != after.seed:
        yield _data("seed", before.seed, after.seed)


def _by_path(data: DataFingerprint) -> dict[str, DataFile]:
    return {one.path: one for one in data.files}


def _same(one: DataFile, other: DataFile) -> bool:
    """Return whether two files are the same, as far as both were hashed."""
    hashed = one.sha256 is not None and other.sha256 is not None
    if not hashed:
        one, other = (replace(file, sha256=None, hashed_bytes=0) for file in (one, other))
    return one == other


def _identity(file: DataFile | None) -> str | None:
    if file is None:
        return None
    digest = f"sha256 {file.sha256[:12]}, " if file.sha256 else ""
    samples = "" if file.samples is None else f", {file.samples} samples"
    return f"{digest}{file.size_bytes} bytes{samples}"


def _data(name: str, before: Value, after: Value) -> Difference:
    return Difference(
        section=Section.DATA, name=name, before=before, after=after, weight=Weight.RESULT
    )
