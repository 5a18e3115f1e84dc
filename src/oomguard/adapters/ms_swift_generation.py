"""What `swift rlhf --rlhf_type grpo` generates, by the settings that it shares with TRL.

Source: ms-swift 4.6.0, rlhf_trainers/{args_mixin,rollout_mixin,grpo_trainer}.py,
arguments/rlhf_args.py (_init_grpo).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from oomguard.adapters import trl_generation, trl_methods
from oomguard.adapters.colocated_engine import EngineKeys
from oomguard.adapters.fields import Key, flag, fraction, maybe_text, number, text
from oomguard.configfile import values
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import Generation, MemorySettings, Reference
from oomguard.job.training_job import Job
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled

#: A vLLM that shares the GPUs, unless it is said to be a server; its sleep has levels.
ENGINE = EngineKeys(
    used=flag("use_vllm"),
    mode=text("vllm_mode", "colocate"),
    share=fraction("vllm_gpu_memory_utilization", 0.9),
    sleeps=Key(name="sleep_level", decode=values.natural, default=0),
    asleep=1,
    awake=0,
)
_GROUP, _ITERATIONS = number("num_generations", 8), number("num_iterations", 1)
_BETA, _TEMPERATURE = fraction("beta", 0.04), fraction("temperature", 0.9)
_TOP_P = fraction("top_p", 1.0)
REFERENCE = maybe_text("ref_model")
_GATHERS = flag("ds3_gather_for_generation", default=True)
#: Whole logits of the completions, divided by the temperature in place, for each row; the
#: reference's come with the generation.
_OBJECTIVE = replace(
    trl_methods.WHOLE[TrainingMethod.DPO],
    method=TrainingMethod.GRPO,
    rows=1,
    reference_first=True,
)


def requested(job: Job, settings: Settings, *, generates: bool) -> Job:
    """Return a job with what it generates; one of another method generates nothing."""
    plan = job.asked
    if not generates:
        plan = replace(plan, completion_length=None, engine_share=None, engine_sleeps=None)
        return replace(job, asked=plan)
    batch = trl_generation.batch_of(settings, plan, job.world)
    plan = replace(plan, generation_batch=batch, sequence_length=None, overlong=None)
    return replace(job, asked=plan, group=_GROUP.of(settings))


def memory_settings(found: MemorySettings, settings: Settings) -> MemorySettings:
    """Return the memory settings with GRPO's loss, and with what generates its rows."""
    reference = Reference.MODEL if REFERENCE.of(settings) else Reference.START
    objective = replace(_OBJECTIVE, reference=reference if _BETA.of(settings) else Reference.NONE)
    found = replace(found, objective=objective, packing=False)
    colocated = ENGINE.is_colocated(settings)
    if ENGINE.used.of(settings) and not colocated:
        return found
    scored = _TEMPERATURE.of(settings) != 1
    warped = trl_generation.WARPED_BYTES if scored else Generation().sampled_bytes
    generation = Generation(
        sampled_bytes=trl_generation.SORTED_BYTES if _TOP_P.of(settings) < 1 else warped,
        iterations=_ITERATIONS.of(settings),
        gathers=_GATHERS.of(settings) and not colocated,
        by_engine=colocated,
    )
    return replace(found, generation=generation)


def unmodelled(job: Job, settings: Settings) -> Iterator[Unmodelled]:
    """Yield what is not known of GRPO's step."""
    yield Unmodelled(
        key="rlhf_type",
        effect="the copies of logits that GRPO makes were read from its source, not measured",
        direction=Direction.MORE,
        line=settings.origin("rlhf_type").line,
    )
    if job.lengths is None:
        yield Unmodelled(
            key="dataset",
            effect="the prompts cannot be read here: how long they are is assumed",
            direction=Direction.EITHER,
            line=settings.origin("dataset").line,
        )
