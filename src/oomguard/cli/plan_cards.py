"""Which GPUs a job fits on: one forecast of its ladder, compared with every GPU that is known."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from oomguard.cli.plan_job import (
    PlannedJob,
    PlanQuestion,
    history_key,
    on_card,
    plan_question,
    planned,
)
from oomguard.cli.plan_target import JobSource, Target
from oomguard.cli.prepare import Prepared
from oomguard.errors import UsageError
from oomguard.estimate.memory import Fits
from oomguard.job.training_job import Job
from oomguard.ladder.strategy_contract import Fidelity
from oomguard.predict.card_answers import Answer, CardAnswer, answer_for, cheapest_answer, smallest
from oomguard.predict.forecast import Capacity, LadderPeaks, ladder_peaks, without_needless
from oomguard.predict.history import FitIndex
from oomguard.predict.replay import Replay, trace_requested

#: How many GPUs are tried where the job takes as many as there are.
COUNTS = (1, 2, 4, 8)
#: And where the question is how many are needed.
EACH_COUNT = tuple(range(1, 9))


@dataclass(frozen=True, slots=True, kw_only=True)
class CardTable:
    """The answers for GPUs and their number, by number, the smallest GPU first.

    `planned` is the forecast on the largest GPU, for what does not depend on the GPU.
    `global_batches` maps the number of GPUs to the samples of an optimizer step. `allow` is the
    strongest change that was tried. `prices` are those of one GPU for an hour, as far as the user
    stated any. `seconds` includes the trace, `answer_seconds` does not.
    """

    planned: PlannedJob
    answers: tuple[CardAnswer, ...]
    global_batches: Mapping[int, int]
    allow: Fidelity
    seconds: float
    answer_seconds: float
    prices: Mapping[str, float] = field(default_factory=dict)

    @property
    def cheapest(self) -> CardAnswer | None:
        """Return the lowest price an hour for which the job fits, None without prices."""
        return cheapest_answer((one for one in self.answers if one.is_fit), self.prices)

    @property
    def smallest(self) -> CardAnswer | None:
        """Return the least memory in all with which the job fits, None if with none."""
        return smallest(one for one in self.answers if one.is_fit)

    @property
    def smallest_as_requested(self) -> CardAnswer | None:
        """Return the least memory in all with which it fits as requested."""
        return smallest(one for one in self.answers if one.answer is Answer.FITS)


def card_table(
    source: JobSource,
    like: Job,
    counts: Sequence[int],
    cards: Sequence[Target],
    *,
    host_bytes: int | None = None,
    index: FitIndex | None = None,
) -> CardTable:
    """Answer for each of some GPUs, and each number of them that the job takes.

    Changes of the same math are tried, unless the command line allows others. `like` is the same
    job, read before.

    Raises:
        UsageError: for a job that runs on the CPU, or whose model is not known.
    """
    began = time.monotonic()
    allowed = source.given.get("allow")
    allow = Fidelity(allowed) if allowed else Fidelity.SAME_MATH
    worlds = _worlds(source, like, counts, allow)
    kinds = _kinds(cards)
    questions = dict(_questions(worlds, kinds, host_bytes))
    first = next(iter(questions.values()))
    replay = trace_requested(
        first.predictor,
        [
            replace(one.request, plans=(one.prepared.ladder.prepare(one.request.job)[0],))
            for one in questions.values()
        ],
    )
    traced = time.monotonic()
    replays = _by_card(replay, first, cards, index)
    answers = tuple(
        answer
        for (gpus, traits), question in questions.items()
        for answer in _answers(question, gpus, kinds[traits], replays)
    )
    peaks = ladder_peaks(first.request, first.prepared.ladder, first.capacity, replay)
    found = peaks.compared(first.request.job.asked, first.capacity, first.unmodelled)
    return CardTable(
        planned=planned(first, found, replay, since=began),
        answers=tuple(sorted(answers, key=lambda one: (one.gpus, one.capacity_bytes))),
        global_batches={gpus: one.job.global_batch for gpus, one in worlds.items()},
        allow=allow,
        seconds=round(time.monotonic() - began, 3),
        answer_seconds=round(time.monotonic() - traced, 3),
    )


#: What decides a plan besides memory: whether a GPU computes in bf16, and whether it is a Hopper.
_Traits = tuple[bool, bool]


def _kinds(cards: Sequence[Target]) -> dict[_Traits, list[Target]]:
    kinds: dict[_Traits, list[Target]] = {}
    for card in cards:
        kinds.setdefault((card.bfloat16, card.hopper), []).append(card)
    return kinds


def _worlds(
    source: JobSource, like: Job, counts: Sequence[int], allow: Fidelity
) -> dict[int, Prepared]:
    """Return the job by its number of GPUs; a launcher with a number of its own leaves one."""
    worlds: dict[int, Prepared] = {}
    for count in counts:
        try:
            prepared = source.on(count, like=like)
        except UsageError:
            if not worlds:
                raise
            continue  # refused on so many GPUs
        ladder = replace(prepared.ladder, allow=allow)
        worlds.setdefault(prepared.job.world.size, replace(prepared, ladder=ladder))
    return worlds


def _questions(
    worlds: Mapping[int, Prepared],
    kinds: Mapping[_Traits, Sequence[Target]],
    host_bytes: int | None,
) -> Iterator[tuple[tuple[int, _Traits], PlanQuestion]]:
    """Yield a question for each number of GPUs and each kind of them, on the largest of it."""
    like = None
    for gpus, prepared in worlds.items():
        for (bfloat16, hopper), cards in kinds.items():
            largest = max(card.device_bytes for card in cards)
            capacity = Capacity(device_bytes=largest, host_bytes=host_bytes)
            on = on_card(prepared, bfloat16=bfloat16, hopper=hopper)
            like = plan_question(on, capacity, like=like)
            yield (gpus, (bfloat16, hopper)), like


def _by_card(
    replay: Replay, question: PlanQuestion, cards: Sequence[Target], index: FitIndex | None
) -> dict[str, Replay]:
    """Return the predictions for each GPU, as earlier measurements on it correct them."""
    replays = dict.fromkeys((card.label for card in cards), replay)
    if index is None:
        return replays
    job, model = question.request.job, question.request.model
    for name in (card.name for card in cards if card.name is not None):
        ratios = index.ratios(history_key(job, model, name, replay.versions or {}))
        if ratios.runs:
            replays[name] = replace(replay, ratios=ratios)
    return replays


def _answers(
    question: PlanQuestion, gpus: int, cards: Sequence[Target], replays: Mapping[str, Replay]
) -> Iterator[CardAnswer]:
    """Yield the answer for each GPU of a kind.

    The ladder is walked once for all of them, unless an inference engine claims a share of the GPU.
    """
    prepared = question.prepared
    refused = prepared.adapter.refusal(prepared.job, prepared.job.asked)
    has_engine = prepared.job.asked.engine_share is not None
    known: dict[int, LadderPeaks] = {}
    for card in cards:
        replay = replays[card.label]
        capacity = replace(question.capacity, device_bytes=card.device_bytes)
        here = plan_question(prepared, capacity, like=question) if has_engine else question
        peaks = None if has_engine else known.get(id(replay))
        if peaks is None:
            peaks = ladder_peaks(here.request, here.prepared.ladder, here.capacity, replay)
            known[id(replay)] = peaks
        peaks = _requested_within(peaks, here, capacity, replay)
        found = without_needless(
            peaks.compared(here.request.job.asked, capacity, here.unmodelled),
            here.request,
            here.prepared.ladder,
            capacity,
            replay,
            unmodelled=here.unmodelled,
        )
        yield answer_for(card.label, gpus, found, capacity, here.unmodelled, refused=refused)


def _requested_within(
    peaks: LadderPeaks, question: PlanQuestion, capacity: Capacity, replay: Replay
) -> LadderPeaks:
    """Return the peaks with that of the requested plan as a replay within this GPU shows it.

    Only a plan that may fit can be shown to fit by that.
    """
    first = peaks.path.first
    unsure = peaks.estimates[first].fits(capacity.device_bytes) is Fits.UNSURE
    if not (replay.traced and unsure):
        return peaks
    request = replace(question.request, plans=(first,), capacity_bytes=capacity.device_bytes)
    (estimate,) = replay(request).estimates
    return replace(peaks, estimates={**peaks.estimates, first: estimate})
