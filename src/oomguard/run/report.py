"""Builds the fit-report from the record of a run."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import msgspec

from oomguard.evidence.verdict import Verdict
from oomguard.job.command import Command
from oomguard.job.plan import Change, Plan, differences
from oomguard.job.provenance import DataFingerprint, Environment
from oomguard.job.training_job import Device, Job, World
from oomguard.ladder.strategy_contract import Fidelity, Skip
from oomguard.redact import redact_config, redact_document
from oomguard.run.attempt import AttemptSpec, StopReason, Weighed, flat, nested
from oomguard.run.events import Limits, Predicted, Status
from oomguard.run.final_plan import final_check, plan_that_fits, with_splits
from oomguard.run.long_sample import long_sample
from oomguard.run.older_reports import SCHEMA_VERSION, upgraded
from oomguard.run.printed_loss import LossEnds
from oomguard.run.reproduction import Reproduction, reproduction
from oomguard.run.restart_worth import weigh
from oomguard.run.shortfall import Shortfall, shortfall
from oomguard.run.splits import Splits, SplitVariant
from oomguard.run.state import Attempt, RunRecord
from oomguard.run.verification import Check, Verified, not_same_math, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReport:
    """One launch: what ran, how it ended, and the peak memory of its processes (bytes).

    `loaded_bytes` were allocated on the device before the first forward pass. `context_bytes` were
    in use outside of PyTorch's allocator: the CUDA context, if no other job used the device.

    `splits` are the optimizer steps that ran in smaller parts after an out-of-memory error.
    `longest_batch` is the longest row that a probe was given (tokens); `predicted` is what its
    plan was predicted to take, None where nothing was predicted. `long_sample` names the one
    sample whose length made the batch that ran out of memory so large. `loss` is what the job
    printed first and last, or the first one as measured.

    `weighed` is what a restart with a cheaper change would have saved and cost at the end of it, or
    as it was stopped for one; `not_weighed` is why that is not known.
    """

    number: int
    spec: AttemptSpec
    seconds: float | None
    optimizer_steps: int
    returncode: int | None
    log_error: str | None = None
    stopped: StopReason | None
    verdict: Verdict | None
    host_peak_bytes: int | None
    data_peak_bytes: int | None = None
    device_peak_bytes: int | None
    reserved_peak_bytes: int | None
    loaded_bytes: int | None = None
    context_bytes: int | None = None
    command: str
    longest_batch: int | None = None
    splits: Splits | None = None
    predicted: Predicted | None = None
    long_sample: str | None = None
    loss: LossEnds | None = None
    weighed: Weighed | None = None
    not_weighed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What was requested, what was tried and what fits; free of secrets.

    `final` is None unless training completed; where steps were split, its micro batch is as small
    as their parts, so that it trains without oomguard; `with_splits` is the plan that ran, where
    that makes many more passes than the few split steps need. `fidelity` is the highest cost among
    the changes, None if nothing was changed. `trained_embeddings` names the vocabulary-sized
    matrices that new tokens make the framework train in full. `requested_bytes` is the size of the
    last failed allocation. `config_diff` is a unified diff from the user's file to the final one.
    `verified` holds what was counted in the last attempt, compared with its plan; `final_batch`
    whether the final micro batch passed at once, None where no step ran in parts. `shortfall` is
    what was missing where all strategies are exhausted. `environment` and `data` are what the run
    was made of when it was last started or resumed, `reproduction` is what runs the final config
    elsewhere; None in older reports.
    """

    schema_version: int
    oomguard: str
    run: str
    at: str
    status: Status
    reason: str
    framework: str
    device: Device
    world: World
    global_batch: int
    trained_embeddings: tuple[str, ...] = ()
    limits: Limits
    asked: Plan
    final: Plan | None
    changes: tuple[Change, ...]
    fidelity: Fidelity | None
    attempts: tuple[AttemptReport, ...]
    not_taken: tuple[Skip, ...]
    requested_bytes: int | None
    config: str | None
    config_diff: str | None
    command: str | None
    seconds: float | None
    environment: Environment | None = None
    data: DataFingerprint | None = None
    reproduction: Reproduction | None = None
    verified: Verified | None = None
    with_splits: SplitVariant | None = None
    final_batch: Check | None = None
    shortfall: Shortfall | None = None


def build(record: RunRecord, *, final: Command | None = None, folder: str = "") -> FitReport:
    """Return the report of a run that has ended.

    `final` is the command of the config that fits, with its files in `folder`.
    """
    job, limits, status = record.job, record.limits, record.status
    if job is None or limits is None or status is None:
        raise AssertionError("only a run that was started and has ended has a report")
    fits = plan_that_fits(record) if record.attempts and status is Status.FIT else None
    report = FitReport(
        schema_version=SCHEMA_VERSION,
        oomguard=record.version,
        run=record.run,
        at=record.at,
        status=status,
        reason=record.reason,
        framework=job.framework,
        device=job.device,
        world=job.world,
        global_batch=job.global_batch,
        trained_embeddings=job.trained_embeddings,
        limits=limits,
        asked=job.asked,
        final=fits,
        changes=differences(job.asked, fits) if fits else (),
        fidelity=highest_cost(record) if fits else None,
        attempts=tuple(_attempt(attempt, record) for attempt in record.attempts),
        not_taken=record.skipped_last,
        requested_bytes=_requested(record),
        config=job.config.path if job.config else None,
        config_diff=_diff(job, final),
        command=final.masked().by_hand() if final else None,
        seconds=record.ended_t,
        environment=record.environment,
        data=record.data,
        reproduction=reproduction(final, job, folder) if final else None,
        verified=verify(record),
        with_splits=with_splits(record) if fits else None,
        final_batch=final_check(record) if fits else None,
        shortfall=shortfall(record),
    )
    return from_document(redact_document(to_json(report)))


def highest_cost(record: RunRecord) -> Fidelity | None:
    """Return the highest cost of the steps that lead to the config that fits.

    Another micro batch is a new recipe where the job showed that it is not the same math.
    """
    first, last = record.attempts[0], record.last
    kept = {*last.spec.path, *(step.strategy for step in first.spec.steps if not first.spec.path)}
    steps = (step for attempt in record.attempts for step in attempt.spec.steps)
    costs = [step.fidelity for step in steps if step.strategy in kept]
    final = plan_that_fits(record)
    if not_same_math(record, final) is not None:
        costs.append(Fidelity.NEW_RECIPE)
    if final != last.spec.plan:
        costs.append(Fidelity.SAME_MATH)
    return max(costs, key=lambda fidelity: fidelity.cost, default=None)


def attempts_of(record: RunRecord) -> object:
    """Return the attempts of a run as a report has them; the run may not have ended."""
    found = [flat(msgspec.to_builtins(_attempt(one, record))) for one in record.attempts]
    return redact_document(found)


def to_json(report: FitReport) -> dict[str, object]:
    """Return a report as the JSON object that is published: each attempt's spec is flat in it."""
    document = msgspec.to_builtins(report, order="deterministic")
    return {**document, "attempts": [flat(attempt) for attempt in document["attempts"]]}


def from_json(data: bytes) -> FitReport:
    """Read what `to_json` returned.

    Raises:
        msgspec.DecodeError: if it is not a report.
    """
    return from_document(msgspec.json.decode(data))


def from_document(value: object) -> FitReport:
    """Read a report from its JSON object, as `from_json` does from its text."""
    document = upgraded(msgspec.convert(value, dict[str, object]))
    attempts = msgspec.convert(document.get("attempts"), list[dict[str, object]])
    return msgspec.convert({**document, "attempts": [nested(one) for one in attempts]}, FitReport)


def schema() -> dict[str, object]:
    """Return the JSON Schema of the fit-report."""
    published = msgspec.json.schema(FitReport)
    definitions = published["$defs"]
    attempt, spec = definitions["AttemptReport"], definitions.pop("AttemptSpec")
    attempt["properties"] = flat({**attempt["properties"], "spec": spec["properties"]})
    required = [name for name in attempt["required"] if name != "spec"]
    attempt["required"] = [*required, *spec["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "oomguard fit-report",
        **published,
    }


def _attempt(attempt: Attempt, record: RunRecord) -> AttemptReport:
    weighed = attempt.weighed or (weigh(attempt) if attempt.splits else None)
    return AttemptReport(
        number=attempt.number,
        spec=attempt.spec,
        seconds=attempt.seconds,
        optimizer_steps=attempt.steps_done,
        returncode=attempt.returncode,
        log_error=attempt.log_error,
        stopped=attempt.stopped,
        verdict=attempt.verdict,
        host_peak_bytes=attempt.host_peak_bytes,
        data_peak_bytes=attempt.data_peak_bytes,
        device_peak_bytes=attempt.device_peak_bytes,
        reserved_peak_bytes=attempt.reserved_peak_bytes,
        loaded_bytes=attempt.loaded_bytes,
        context_bytes=attempt.context_bytes,
        command=attempt.command,
        longest_batch=attempt.longest_batch,
        splits=attempt.splits,
        predicted=record.predicted_for(attempt.spec.plan),
        long_sample=long_sample(record, attempt),
        loss=attempt.loss or _measured_loss(attempt),
        weighed=None if isinstance(weighed, str) else weighed,
        not_weighed=weighed if isinstance(weighed, str) else None,
    )


def _measured_loss(attempt: Attempt) -> LossEnds | None:
    """Return the loss of the first step, where the monitor measured it."""
    values = (one.loss.value for one in attempt.counted if one.loss)
    first = next((value for value in values if value is not None), None)
    return None if first is None else LossEnds(unit="step", first_at=1, first=first)


def _requested(record: RunRecord) -> int | None:
    verdicts = [attempt.verdict for attempt in reversed(record.attempts) if attempt.verdict]
    return next((v.requested_bytes for v in verdicts if v.requested_bytes), None)


def _diff(job: Job, final: Command | None) -> str | None:
    files = final.files if final else ()
    text = next((file.text for file in files if final and file.path == final.config), None)
    if job.config is None or text is None:
        return None
    lines = difflib.unified_diff(
        redact_config(job.config.text).splitlines(keepends=True),
        redact_config(text).splitlines(keepends=True),
        fromfile=job.config.path,
        tofile="final",
    )
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)
