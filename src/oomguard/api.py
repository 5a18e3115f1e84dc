"""oomguard from Python: plan a job, say why one failed, launch one.

    import oomguard

    planned = oomguard.plan("train.yaml", gpu="RTX 3090")
    planned.fits, planned.estimate.expected_bytes
    report = oomguard.launch(["python", "train.py", "--bf16"], allow="same_math")
    oomguard.explain(Path("job.log")).kind

A job is a config file, or a command word by word. Options are those of docs/options.md by their
Python names, such as `allow`, `ladder`, `python` and `host_memory_bytes`. What cannot be done as
asked raises a `UsageError` that says where and what to do next.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from oomguard.cli.console import Console
from oomguard.cli.launch_command import launched
from oomguard.cli.options import Options
from oomguard.cli.plan_command import plan_call, plan_document
from oomguard.cli.plan_job import PlannedJob, on_card, plan_job
from oomguard.cli.plan_target import JobSource
from oomguard.cli.plan_text import show_changes
from oomguard.cli.prepare import prepare
from oomguard.errors import LogError, UsageError, Where, did_you_mean
from oomguard.estimate.memory import Fits, MemoryEstimate
from oomguard.evidence.judge import judge_log
from oomguard.evidence.verdict import Verdict
from oomguard.job.plan import differences
from oomguard.job.unmodelled import Unmodelled
from oomguard.predict.forecast import Capacity, Fit
from oomguard.run.report import FitReport
from oomguard.units import show_bytes

Job = str | os.PathLike[str] | Sequence[str]
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """A job, planned for one GPU. In a notebook it shows itself."""

    job: PlannedJob

    @property
    def fits(self) -> Fits:
        """Return whether the job fits as it is; `UNSURE` is not a yes."""
        return self.job.forecast.asked.fits

    @property
    def estimate(self) -> MemoryEstimate:
        """Return the peak of the job as it is, in bytes, with its terms."""
        return self.job.forecast.asked.estimate

    @property
    def first_fit(self) -> Fit | None:
        """Return the first plan of the ladder that is certain to fit, None if none is."""
        return self.job.forecast.first_fit

    @property
    def unmodelled(self) -> tuple[Unmodelled, ...]:
        """Return the settings whose effect on memory is not included."""
        return self.job.unmodelled

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the figures assume."""
        return self.job.notes

    @property
    def document(self) -> Mapping[str, object]:
        """Return what `oomguard plan --json` prints."""
        found: Mapping[str, object] = msgspec.to_builtins(plan_document(self.job))
        return found

    def _changes(self) -> str:
        if self.fits is Fits.YES:
            return "none needed"
        first, asked = self.first_fit, self.job.forecast.asked.plan
        return show_changes(differences(asked, first.plan)) if first else "none is certain to help"

    def _repr_markdown_(self) -> str:
        found, asked = self.estimate, self.job.forecast.asked.plan
        rows = {
            "model": self.job.model.name,
            "trained": self.job.trained(asked).what,
            "available": show_bytes(self.job.capacity.device_bytes),
            "expected": f"{show_bytes(found.expected_bytes)} ({show_bytes(found.low_bytes)} to "
            f"{show_bytes(found.high_bytes)}, {found.method})",
            "fits as it is": self.fits.value,
            "changes until it fits": self._changes(),
        }
        lines = [f"| {name} | {text} |" for name, text in rows.items()]
        left_out = [f"- left out: {one.sentence}" for one in self.unmodelled]
        return "\n".join(["| | |", "|---|---|", *lines, "", *left_out])


def plan(
    job: Job,
    *,
    gpu: str | None = None,
    gpu_memory_bytes: int | None = None,
    gpus: int | None = None,
    host_memory_bytes: int | None = None,
    **options: object,
) -> PlanResult:
    """Predict the memory of a job on a GPU; without a name or a size, on the smallest one here.

    Raises:
        UsageError: for what cannot be planned, or if there is no GPU here and none is named.
    """
    train, command = _parted(job)
    source = JobSource(train=train, command=command, given=_given(options))
    call = plan_call(source, gpu, gpu_memory_bytes, gpus=gpus, host_bytes=host_memory_bytes)
    if call.target is None:
        raise UsageError(
            "there is no GPU here to plan for",
            next_step="Name one: gpu='RTX 3090', or gpu_memory_bytes=24 << 30.",
        )
    target = call.target
    planned = plan_job(
        on_card(call.prepared, bfloat16=target.bfloat16, hopper=target.hopper),
        Capacity(device_bytes=target.device_bytes, host_bytes=host_memory_bytes),
        device=target.name,
        index=call.index,
    )
    return PlanResult(job=planned)


def explain(log: os.PathLike[str] | str, *, exit_code: int | None = None) -> Verdict:
    """Return why a job failed: `log` is the path of its log, or as `str` the text itself.

    Raises:
        LogError: if the log cannot be read.
    """
    if isinstance(log, str):
        return judge_log([log.encode()], exit_code)
    path = Path(log)
    try:
        with path.open("rb") as file:
            return judge_log(iter(lambda: file.read(_CHUNK_BYTES), b""), exit_code)
    except OSError as error:
        raise LogError(
            f"the log cannot be read: {error.strerror}", where=Where(file=str(path))
        ) from error


def launch(job: Job, **options: object) -> FitReport:
    """Run a job, relaunched with lower memory use until it fits; call it from the main thread.

    Returns its fit-report, also if no strategy helped: see `status`. The job's output and
    oomguard's lines are printed.

    Raises:
        UsageError: for what cannot be run as asked; nothing was started.
    """
    train, command = _parted(job)
    _, (report, _), _ = launched(
        prepare(train, command, _given(options)), Console(quiet_stdout=False)
    )
    return report


def _parted(job: Job) -> tuple[Path | None, tuple[str, ...]]:
    """Return the config file, or the command."""
    if isinstance(job, str | os.PathLike):
        return Path(job), ()
    return None, tuple(job)


def _given(options: Mapping[str, object]) -> Mapping[str, object]:
    """Return options that exist, of the right types.

    Raises:
        UsageError: for another name or type.
    """
    known = [field.name for field in fields(Options)]
    for name in options:
        if name not in known:
            raise UsageError(f"there is no option {name!r}", next_step=did_you_mean(name, known))
    try:
        msgspec.convert(dict(options), Options)
    except msgspec.ValidationError as error:
        raise UsageError(f"wrong option: {error}", next_step="See docs/options.md.") from error
    return options
