"""Resuming from a checkpoint of transformers' Trainer: where it is, what survives a change.

What a change does to a resume was run with transformers 4.57 to 5.6 and peft 0.18: another batch
under the same global batch and a LoRA adapter on a base now in 4-bit resume; another optimizer
fails with `KeyError: 'state1'`, another LoRA rank with a size mismatch, another ZeRO stage with
`Can't find a valid checkpoint` or a bare AssertionError.
"""

from __future__ import annotations

from oomguard.adapters.fields import Key, flag, number
from oomguard.configfile.layered import Settings
from oomguard.configfile.values import anything
from oomguard.job.checkpoint import Continuation, Layout, Mode
from oomguard.job.plan import Overlong, Plan
from oomguard.job.training_job import Job

RESUME: Key[object] = Key(name="resume_from_checkpoint", decode=anything, default=None)
OVERWRITE = flag("overwrite_output_dir")
SAVE_ONLY_MODEL = flag("save_only_model")
STRATEGY: Key[object] = Key(name="save_strategy", decode=anything, default="steps")
EVERY = number("save_steps", 500)

#: A change of one of these leaves an optimizer state that does not belong to the new run.
_STATEFUL = {
    "optimizer": "the optimizer changes",
    "sharding": "the sharding changes",
    "offload": "the offload changes",
    "lora_rank": "the LoRA rank changes",
    "tuning": "what is trained changes",
    "frozen": "what is frozen changes",
    "embedding_rows": "what is trained changes",
}
#: With these the length decides which samples there are, and a resume skips by their number.
_OTHER_SAMPLES = (Overlong.CHUNKED, Overlong.DROPPED)


def saves(settings: Settings) -> bool:
    """Return whether the job saves checkpoints without being told to."""
    return STRATEGY.of(settings) not in ("no", False)  # YAML 1.1 reads a bare no as false


def saving(settings: Settings, job: Job) -> Settings:
    """Return settings that save what `--checkpoint-every` asks for if the job saves none."""
    if job.checkpoint_every is None or saves(settings):
        return settings
    return settings.set(STRATEGY.name, "steps").set(EVERY.name, job.checkpoint_every)


def layout(job: Job, settings: Settings) -> Layout | None:
    """Return the Trainer's checkpoints: weights, optimizer state and `trainer_state.json`."""
    if job.output_dir is None or not saves(saving(settings, job)):
        return None
    return Layout(
        folder=job.output_dir,
        name=r"checkpoint-(?P<step>\d+)",
        needs=(
            "trainer_state.json",
            "*.safetensors|*.bin|pytorch_model_fsdp*|global_step*",
            "optimizer*|global_step*",
        ),
    )


def resume_mode(settings: Settings, before: Plan, after: Plan, *, packs: bool) -> tuple[Mode, str]:
    """Return what of a checkpoint written under `before` survives under `after`.

    `packs` says that samples are packed into sequences: a shorter one then holds other samples.
    """
    if SAVE_ONLY_MODEL.of(settings):
        return Mode.RESTART, "the checkpoints hold no optimizer state (save_only_model)"
    limits = [(plan.sequence_length, plan.overlong) for plan in (before, after)]
    if limits[0] != limits[1]:
        if packs:
            return Mode.RESTART, "samples are packed, and the sequence length changes"
        if before.overlong in _OTHER_SAMPLES or after.overlong in _OTHER_SAMPLES:
            return Mode.RESTART, "the sequence length changes which samples there are"
    changed = (
        why for field, why in _STATEFUL.items() if getattr(before, field) != getattr(after, field)
    )
    reason = next(changed, None)
    return (Mode.RESTART, reason) if reason else (Mode.FULL, "")


def resumed(settings: Settings, begins: Continuation | None) -> Settings:
    """Return settings that resume from the checkpoint; unchanged without one."""
    if begins is None or begins.checkpoint is None:
        return settings
    return settings.set(RESUME.name, begins.checkpoint.path)


def handed_over(begins: Continuation | None) -> dict[str, str]:
    """Return the variable through which the monitor passes a script its checkpoint.

    The variable is one of docs/monitor-protocol.md.
    """
    checkpoint = begins.checkpoint if begins else None
    return {"OOMGUARD_RESUME": checkpoint.path} if checkpoint else {}


def restarted(settings: Settings, begins: Continuation | None) -> Settings:
    """Return settings that keep LLaMA-Factory from resuming from a checkpoint that does not fit."""
    if begins is None or not begins.hide:
        return settings
    return settings.set(OVERWRITE.name, value=True)
