"""What an attempt runs and why: one value in the decision, the event, the record and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum

from oomguard.job.checkpoint import Continuation
from oomguard.job.plan import Plan
from oomguard.ladder.steps import Skip, Step


class Purpose(str, Enum):
    """What an attempt is for."""

    TRAIN = "train"  # the plan that the ladder gives
    TRIAL = "trial"  # with less changed than in a plan that fits: is that enough?
    BEST = "best"  # the least changed of the plans that were seen to fit, to the end


class StopReason(str, Enum):
    """Why oomguard stopped an attempt."""

    OUT_OF_MEMORY = "out of memory"
    SIGNAL = "signal"  # oomguard itself received one
    RECYCLE = "recycle"  # memory grows: restart from the latest checkpoint before the OOM
    HANG = "hang"  # no progress within the hang timeout
    FITS = "fits"  # it fits: try a plan that changes less
    PROBED = "probed"  # a probe finished its steps but did not exit


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A launch apart from the run: it saves nothing, and ends after `steps` optimizer steps.

    Its batches are lengthened to `tokens`; None: they stay as they come.
    """

    steps: int
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpec:
    """What an attempt runs: its plan, how the ladder got there, and from which checkpoint.

    `path` names the strategies that lead from the requested config to `plan`, in their order.
    `steps` are those that are new in it, `skipped` the strategies that were skipped before it, and
    `undone` those that the plan before it had and this one has not.
    """

    plan: Plan
    steps: tuple[Step, ...] = ()
    skipped: tuple[Skip, ...] = ()
    begins: Continuation | None = None
    purpose: Purpose = Purpose.TRAIN
    path: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()
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
