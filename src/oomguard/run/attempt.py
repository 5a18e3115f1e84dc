"""What an attempt runs and why: one value in the decision, the event, the record and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum

from oomguard.job.checkpoint import Continuation
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.ladder.strategy_contract import Skip, Step


class Purpose(str, Enum):
    """What an attempt is for."""

    TRAIN = "train"  # the next plan on the ladder
    TRIAL = "trial"  # with fewer changes than a plan that fits
    BEST = "best"  # the plan with the fewest changes of those that fit, to completion


class StopReason(str, Enum):
    """Why oomguard stopped an attempt."""

    OUT_OF_MEMORY = "out of memory"
    SIGNAL = "signal"  # oomguard itself received one
    RECYCLE = "recycle"  # memory grows: restart from the latest checkpoint before the OOM
    HANG = "hang"  # no progress within the hang timeout
    FITS = "fits"  # it fits: try a plan that changes less
    PROBED = "probed"  # a probe finished its steps but did not exit
    DIFFERS = "differs"  # its optimizer steps do not have the samples of its plan
    CHEAPER = "cheaper"  # its steps run in parts, and a restart with a cheaper change saves more
    NOT_SAME_MATH = "not same math"  # its loss or its steps change with the micro batch


#: A restart has to save this many times what it costs: the change may not be enough.
MARGIN = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A restart against going on, in seconds as measured.

    A step in parts takes `divided_s`, and would take `whole_s` if its batches went through whole.
    Of the `steps_left` the `share` runs in parts. A restart costs `load_s`, from the launch to the
    end of the first step, and `lost_steps` once more, each of `step_s`.
    """

    divided_s: float
    whole_s: float
    share: float
    steps_left: int
    load_s: float
    lost_steps: int
    step_s: float

    @property
    def saved_s(self) -> float:
        """Return what a restart would save, if its change is enough."""
        return max(0.0, self.divided_s - self.whole_s) * self.share * self.steps_left

    @property
    def cost_s(self) -> float:
        """Return what a restart costs."""
        return self.load_s + self.lost_steps * self.step_s

    @property
    def is_worth_it(self) -> bool:
        """Return whether it saves more than it costs, by the margin."""
        return self.saved_s > MARGIN * self.cost_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A short launch that only shows whether a plan fits: it saves nothing and ends after `steps`.

    Its batches are lengthened to `tokens`; None leaves them as they are.
    """

    steps: int
    tokens: int | None = None


#: Optimizer steps of a probe. The optimizer state is allocated at the end of the first step: the
#: second has everything in memory.
PROBE_STEPS = 2


def probe_of(job: Job, plan: Plan) -> Probe:
    """Return the probe of a plan: batches as long as its limit or its longest sample allows.

    As in a prediction, only a count by the model's own tokenizer is used; the memory of media
    depends on more than the text.
    """
    limit, lengths = plan.sequence_length, job.lengths
    if plan.completion_length is not None:  # the rows do not come from the data
        return Probe(steps=PROBE_STEPS)
    if lengths is None or lengths.filled or job.multimodal or not lengths.is_exact:
        return Probe(steps=PROBE_STEPS, tokens=limit)
    if limit is None:  # no template either: it might exceed the model's context
        return Probe(steps=PROBE_STEPS, tokens=lengths.longest)
    return Probe(steps=PROBE_STEPS, tokens=min(limit, lengths.at_most or limit))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpec:
    """What an attempt runs: its plan, how the ladder got there, and from which checkpoint.

    `path` names the strategies that lead from the requested config to `plan`, in their order.
    `steps` are those that are new in it, `skipped` the strategies that were skipped before it, and
    `undone` those that the plan before it had and this one has not. `not_launched` are the steps
    whose plans were not tried, since they cannot save enough.
    """

    plan: Plan
    steps: tuple[Step, ...] = ()
    skipped: tuple[Skip, ...] = ()
    begins: Continuation | None = None
    purpose: Purpose = Purpose.TRAIN
    path: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()
    not_launched: tuple[Skip, ...] = ()
    probe: Probe | None = None


_SPEC_FIELDS = frozenset(field.name for field in fields(AttemptSpec))


def flat(document: Mapping[str, object]) -> dict[str, object]:
    """Return a JSON object with the fields of its `spec` beside its own, as files have them."""
    spec = document["spec"]
    if not isinstance(spec, dict):
        raise TypeError("spec is not an object")
    return {name: value for name, value in document.items() if name != "spec"} | spec


def nested(document: Mapping[str, object]) -> dict[str, object]:
    """Undo `flat`: return the object with the fields of an attempt's spec under `spec`."""
    spec = {name: value for name, value in document.items() if name in _SPEC_FIELDS}
    return {name: value for name, value in document.items() if name not in spec} | {"spec": spec}
