"""TRL's methods that train on what the policy generates: how much of it, and what they refuse.

Source: trl 1.16.0, trainer/{grpo,rloo}_{config,trainer}.py, models/utils.py
(unwrap_model_for_generation); transformers 5.23, generation/utils.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from oomguard.adapters.colocated_engine import EngineKeys
from oomguard.adapters.config_adapter import Refusal
from oomguard.adapters.fields import (
    Binding,
    Key,
    flag,
    fraction,
    maybe_number,
    maybe_text,
    number,
    text,
)
from oomguard.adapters.settings.trainer_settings import is_evaluating
from oomguard.configfile import values
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import Generation, MemorySettings, Objective, Reference
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job, World
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

_BETA, _GROUP = fraction("beta", 0.0), number("num_generations", 8)
#: The settings whose defaults differ between the methods.
_BETAS = {TrainingMethod.GRPO: _BETA, TrainingMethod.RLOO: replace(_BETA, default=0.05)}
_GROUPS = {TrainingMethod.GRPO: _GROUP, TrainingMethod.RLOO: replace(_GROUP, default=2)}
METHODS = frozenset(_GROUPS)
_COMPLETION: Key[int | None] = Key(name="max_completion_length", decode=values.whole, default=512)
_STEPS = maybe_number("steps_per_generation")
_BATCH = maybe_number("generation_batch_size")
_ITERATIONS = number("num_iterations", 1)
_EVALUATED = maybe_number("num_generations_eval")
_EVAL = maybe_text("eval_strategy")
_TOP_P = fraction("top_p", 1.0)
_WARPS = (
    *(fraction("temperature", 1.0), fraction("repetition_penalty", 1.0)),
    *(fraction("min_p", 0.0), fraction("top_k", 0.0)),
)
#: Scores, their warped copy, probabilities, and the noise a token is drawn by (torch.multinomial
#: divides by exponential noise); sorted: with int64 indices and cumulated sums instead.
WARPED_BYTES, SORTED_BYTES = 16, 28
#: A vLLM beside the training, unless it is said to be a server.
ENGINE = EngineKeys(
    used=flag("use_vllm"),
    mode=text("vllm_mode", "colocate"),
    share=fraction("vllm_gpu_memory_utilization", 0.3),
    sleeps=flag("vllm_enable_sleep_mode"),
)
_GATHERS = flag("ds3_gather_for_generation", default=True)
_QUANTILE = fraction("top_entropy_quantile", 1.0)
_ENTROPY, _ADAPTIVE = fraction("entropy_coef", 0.0), flag("use_adaptive_entropy")


def _completion_length(settings: Settings) -> int | None:
    without_end = settings.has(_COMPLETION.name) and settings.get(_COMPLETION.name) is None
    return None if without_end else _COMPLETION.of(settings)


COMPLETION_LENGTH = Binding(
    field="completion_length",
    read=_completion_length,
    edits=lambda _, value: {_COMPLETION: value},
)


def batch_of(settings: Settings, plan: Plan, world: World) -> int:
    """Return the completions that each rank generates at once: those of an optimizer step."""
    whole, steps = _BATCH.of(settings), _STEPS.of(settings)
    if whole is not None and steps is None:
        return max(1, whole // world.size)
    return plan.micro_batch * (steps or plan.accumulation)


def edited(settings: Settings, job: Job, plan: Plan) -> Settings:
    """Return settings with which each rank generates what the plan says."""
    wanted = plan.generation_batch
    if wanted is None or batch_of(settings, plan, job.world) == wanted:
        return settings
    if _BATCH.of(settings) is not None:
        return settings.set(_BATCH.name, wanted * job.world.size)
    return settings.set(_STEPS.name, wanted // plan.micro_batch)


def averages_locally(settings: Settings) -> bool:
    """Return whether a token's weight depends on the others in its micro batch."""
    entropy = _ENTROPY.of(settings) > 0 or _ADAPTIVE.of(settings)
    return settings.get("loss_type") == "bnpo" or _QUANTILE.of(settings) < 1 or entropy


def compared(objective: Objective, method: TrainingMethod, settings: Settings) -> Objective:
    """Return an objective with the reference that the settings need: none where beta is 0."""
    return (
        objective if _BETAS[method].of(settings) else replace(objective, reference=Reference.NONE)
    )


def memory_settings(found: MemorySettings, settings: Settings) -> MemorySettings:
    """Return memory settings with what generates the rows; only the prompts come from the data."""
    found = replace(found, columns=("prompt",))
    if ENGINE.used.of(settings) and not ENGINE.is_colocated(settings):
        return found
    generation = Generation(
        by_engine=ENGINE.is_colocated(settings),
        sampled_bytes=_sampled_bytes(settings),
        iterations=_ITERATIONS.of(settings),
        gathers=_GATHERS.of(settings) and not ENGINE.is_colocated(settings),
    )
    return replace(found, generation=generation)


def _sampled_bytes(settings: Settings) -> int:
    """Return the bytes beside each logit: its fp32 copy, probability and noise, a warped score.

    top_p sorts scores and their indices, and sums their probabilities up.
    """
    if _TOP_P.of(settings) < 1:
        return SORTED_BYTES
    scored = any(key.of(settings) != key.default for key in _WARPS)
    return WARPED_BYTES if scored else Generation().sampled_bytes


def group_of(method: TrainingMethod, settings: Settings) -> int | None:
    """Return how many completions of each prompt are compared with each other."""
    key = _GROUPS.get(method)
    return key.of(settings) if key else None


def not_known(job: Job) -> Iterator[Unmodelled]:
    """Yield what decides the length of generated rows and is not known."""
    if job.group is None:
        return
    if job.lengths is None:
        yield Unmodelled(
            key="dataset_name",
            effect="the prompts cannot be read here, and none is cut: how long they are is assumed",
            direction=Direction.EITHER,
        )
    if job.multimodal:
        yield Unmodelled(
            key="model_name_or_path",
            effect="images of prompts are not counted while completions are generated",
            direction=Direction.MORE,
        )


def _rows(job: Job, plan: Plan) -> int:
    return (plan.generation_batch or 0) * job.world.size


def _splits_eval(settings: Settings, job: Job, plan: Plan) -> bool:
    """Return whether an evaluation's batch would hold a part of a group."""
    group = _EVALUATED.of(settings) or job.group
    if group is None or plan.eval_batch is None or not is_evaluating(_EVAL.of(settings)):
        return False
    return plan.eval_batch * job.world.size % group != 0


#: All completions of a prompt stay together.
WHOLE_GROUPS = (
    Refusal(
        message="generation_batch_size must be divisible by the global batch size",
        when=lambda _, job, plan: bool(
            job.group and (plan.generation_batch or 0) % plan.micro_batch
        ),
    ),
    Refusal(
        message="generation_batch_size must be divisible by num_generations",
        when=lambda _, job, plan: bool(job.group and _rows(job, plan) % job.group),
    ),
    Refusal(
        message="The global eval batch size must be divisible by the number of generations used "
        "for evaluation",
        when=_splits_eval,
    ),
)
REFUSALS = (
    Refusal(
        message="'generation_batch_size' and 'steps_per_generation' can not be both configured at "
        "the same time",
        when=lambda settings, job, _: bool(
            job.group and _BATCH.of(settings) and _STEPS.of(settings)
        ),
    ),
    Refusal(
        message="auto_find_batch_size is not supported, because the generation batch must contain "
        "full prompt groups of num_generations completions",
        when=lambda _, job, plan: bool(job.group and plan.auto_find_batch_size),
    ),
    Refusal(
        message="at least 2 generations per prompt are required to calculate the advantages",
        when=lambda _, job, __: job.group == 1,
    ),
    *WHOLE_GROUPS,
    Refusal(
        message="You passed `sync_ref_model=True` while `beta=0.0`, which means the reference "
        "model is not used during training.",
        when=lambda settings, job, _: bool(
            job.group
            and settings.get("sync_ref_model")
            and settings.has("beta")
            and not settings.get("beta")
        ),
    ),
    Refusal(
        message="No reward source provided. Pass `reward_funcs`",
        when=lambda settings, job, _: bool(
            job.group
            and not settings.get("reward_funcs")
            and not settings.get("reward_model_name_or_path")
        ),
    ),
)
