"""`plan --max`: the largest value of one setting that fits, with everything else as requested."""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.cli.output import echo, secho
from oomguard.cli.plan_job import PlannedJob
from oomguard.cli.plan_table import missing_lines, print_head, show_peak
from oomguard.cli.plan_text import show_plan
from oomguard.cli.replayed_job import ReplayedJob, requested_size
from oomguard.estimate.architecture import context_length
from oomguard.estimate.memory import Method
from oomguard.predict.forecast import PlannedPeak
from oomguard.predict.largest import largest

#: Where the search ends if nothing of the job bounds the value.
_MOST = {"micro_batch": 1 << 16, "sequence_length": 1 << 20, "image_pixels": 1 << 24}
#: How far below a value that fits one is looked for that the framework takes.
_STEPS_DOWN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeAnswer:
    """A value, the peak of the plan that has it, and the settings to write for it."""

    value: int
    peak: PlannedPeak
    global_batch: int
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestFit:
    """The largest value of a field that is certain to fit and the largest that may; None: none.

    `most` is where the search ended, `bounded_by` why.
    """

    planned: PlannedJob
    field: str
    requested: SizeAnswer
    certain: SizeAnswer | None
    possible: SizeAnswer | None
    most: int
    bounded_by: str
    answer_seconds: float

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what qualifies the answer."""
        found = [one for one in (self.certain, self.possible) if one is not None]
        ends = f"{self.field} was searched up to {self.most}: {self.bounded_by}"
        traced = (
            "the requested config was traced; peaks of other values are scaled from it, and a plan "
            "of the config with such a value traces it"
        )
        is_scaled = any(one.peak.estimate.method == Method.SCALED.value for one in found)
        return (
            *((ends,) if any(one.value == self.most for one in found) else ()),
            *((traced,) if is_scaled else ()),
            *self.planned.notes,
        )


def largest_fit(job: ReplayedJob, field: str) -> LargestFit:
    """Search for the largest value of a field.

    Raises:
        UsageError: if the job has no such field.
    """
    requested = requested_size(job.asked, field)
    most, bounded_by = _most(job, field)
    peaks: dict[int, PlannedPeak] = {}

    def peak(value: int) -> PlannedPeak:
        if value not in peaks:
            peaks[value] = job.peak(job.with_values({field: value}))
        return peaks[value]

    found = largest(lambda value: peak(value).fits, requested=requested, most=max(most, requested))

    def accepted(value: int | None) -> SizeAnswer | None:
        """Return the largest value up to this one that the framework takes."""
        for smaller in range(value or 0, max(0, (value or 0) - _STEPS_DOWN), -1):
            if job.refusal(peak(smaller).plan) is None:
                return _size_answer(job, smaller, peak(smaller))
        return None

    return LargestFit(
        planned=job.planned(),
        field=field,
        requested=_size_answer(job, requested, peak(requested)),
        certain=accepted(found.certain),
        possible=accepted(found.possible),
        most=max(most, requested),
        bounded_by=bounded_by,
        answer_seconds=job.answer_seconds,
    )


def _size_answer(job: ReplayedJob, value: int, peak: PlannedPeak) -> SizeAnswer:
    batch = peak.plan.rank_batch * job.question.request.job.world.size
    settings = () if peak.plan == job.asked else tuple(job.settings(peak.plan))
    return SizeAnswer(value=value, peak=peak, global_batch=batch, settings=settings)


def _most(job: ReplayedJob, field: str) -> tuple[int, str]:
    """Return the largest value that is worth a try, and why."""
    model = job.question.request.model
    if field == "lora_rank":
        return model.architecture.hidden, "the model's hidden size"
    context = context_length(model.config) if field == "sequence_length" else None
    if context is not None:
        return context, "the tokens that the model is made for"
    return _MOST[field], "the end of the search"


def print_largest(found: LargestFit, *, gpu: str | None) -> None:
    """Print the answer and the peaks behind it."""
    planned = found.planned
    print_head(planned, gpu)
    echo(f"requested config: {show_plan(found.requested.peak.plan)}")
    echo()
    secho(sentence(found), fg="green" if found.certain else "yellow", bold=True)
    shown = {one.value: one for one in (found.certain, found.possible, found.requested) if one}
    for value, one in sorted(shown.items()):
        batch = f", global batch {one.global_batch}" if found.field == "micro_batch" else ""
        echo(f"    {found.field} {value}{batch}: {show_peak(one.peak.estimate)}")
        if one.settings:
            echo(f"        {', '.join(one.settings)}")
    for line in missing_lines(planned):
        secho(line, fg="yellow")
    echo()
    for note in dict.fromkeys(found.notes):
        echo(f"note: {note}")


def sentence(found: LargestFit) -> str:
    """Return the answer on one line."""
    field, requested = found.field, found.requested.value
    if found.planned.rejected is not None:
        title = found.planned.prepared.adapter.title
        return f"{title} rejects the requested config: {found.planned.rejected.message}"
    if found.possible is None:
        return f"With no {field} does it fit, not even with 1 (requested: {requested})."
    if found.certain is None:
        most = found.possible.value
        return (
            f"With no {field} is it certain to fit; up to {most} it may (requested: {requested})."
        )
    certain, possible = found.certain.value, found.possible.value
    if certain == found.most:
        return f"It fits with every {field} up to {certain} (requested: {requested})."
    more = f", and up to {possible} may fit" if possible > certain else ""
    return (
        f"The largest {field} that is certain to fit is {certain}{more} (requested: {requested})."
    )


def largest_document(found: LargestFit) -> dict[str, object]:
    """Return the answer as `--json` prints it."""
    planned = found.planned
    return {
        **planned.subject,
        "field": found.field,
        "requested": _row(found.requested),
        "certain": _row(found.certain),
        "possible": _row(found.possible),
        "searched_up_to": found.most,
        "bounded_by": found.bounded_by,
        "notes": list(dict.fromkeys(found.notes)),
        "seconds": planned.seconds,
        "answer_seconds": found.answer_seconds,
    }


def _row(one: SizeAnswer | None) -> dict[str, object] | None:
    if one is None:
        return None
    return {
        "value": one.value,
        "fits": one.peak.fits,
        "method": one.peak.estimate.method,
        "global_batch": one.global_batch,
        "settings": one.settings,
        "plan": one.peak.plan,
        "estimate": one.peak.estimate,
    }
