"""What TRL's methods compute in a training step, and what they refuse.

Source: trl 1.16.0, trainer/{sft,dpo,reward,kto,grpo,rloo}_{config,trainer}.py, trainer/utils.py
(add_fused_lm_head), kernels/chunked_logprob.py; peft 0.21 (disable_adapter).
"""

from __future__ import annotations

from dataclasses import replace

from oomguard.adapters import trl_generation
from oomguard.adapters.config_adapter import Refusal
from oomguard.adapters.fields import flag, fraction, text
from oomguard.configfile.layered import Settings
from oomguard.job.memory_settings import Head, MemorySettings, Objective, Reference, Tiles
from oomguard.job.plan import Overlong, Plan
from oomguard.job.unmodelled import TrainingMethod

PRECOMPUTE = flag("precompute_ref_log_probs")
_SYNC = flag("sync_ref_model")
_SMOOTHING = fraction("label_smoothing_factor", 0.0)
_DISABLE_DROPOUT = flag("disable_dropout", default=True)
#: Those that set dropout to 0 only where the settings say so.
_KEEPS_DROPOUT = replace(_DISABLE_DROPOUT, default=False)

#: Log-probabilities come from tiles of the logits (TOKEN_CHUNK_SIZE, _CHUNKED_LOGPROB_CHUNK_SIZE).
_TILES = Tiles(tokens=4096, words=32768)
#: The first version whose trainers have that head.
_SINCE = ("trl", (1, 16))
#: As TRL computed it before 1.16, and its experimental trainers do: from whole logits in fp32
#: (trl 0.29.1 and 1.9.0, trainer/dpo_trainer.py, trainer/utils.py selective_log_softmax,
#: experimental/{kto,cpo,orpo}). Beside them stand half of the 16-bit ones that they were cast from,
#: and in the backward pass their rows' gradients and one of all. Not traced: arithmetic alone.
_WHOLE_DPO = Objective(
    method=TrainingMethod.DPO,
    rows=2,
    reference=Reference.START,
    logit_bytes=(6, 12),
    reference_logit_bytes=4,
)
_WHOLE_KTO = replace(_WHOLE_DPO, method=TrainingMethod.KTO, rows=1)
#: The trained policy's forward pass, then the reference's: without gradients or checkpoints.
_DPO = Objective(
    method=TrainingMethod.DPO,
    rows=2,
    reference=Reference.START,
    tiles=_TILES,
    traced="trl_losses:preference",
    since=_SINCE,
    earlier=_WHOLE_DPO,
)
REWARD = Objective(
    method=TrainingMethod.REWARD, rows=2, head=Head.SCORE, traced="trl_losses:reward"
)
#: The cross entropy of each token by the same head, weighted by its probability in DFT's loss.
_SFT = Objective(
    method=TrainingMethod.SFT, tiles=_TILES, traced="trl_losses:supervised", since=_SINCE
)
#: A row for each sample. The samples with each other's answers, by which the divergence is
#: estimated, go through both models as well: without gradients, and before the sample's own pass.
_KTO = replace(
    _DPO,
    method=TrainingMethod.KTO,
    rows=1,
    traced="trl_losses:unpaired",
    earlier=_WHOLE_KTO,
)
#: Without a reference; the better answer is also trained on word by word, which copies its half of
#: the logits and keeps their log-probabilities. Measured: tests/frameworks/test_whole_logits.py.
_WHOLE_ORPO = replace(
    _WHOLE_DPO,
    method=TrainingMethod.ORPO,
    reference=Reference.NONE,
    logit_bytes=(8, 14),
    reference_logit_bytes=0.0,
)
WHOLE = {
    TrainingMethod.DPO: _WHOLE_DPO,
    TrainingMethod.KTO: _WHOLE_KTO,
    TrainingMethod.ORPO: _WHOLE_ORPO,
    TrainingMethod.CPO: replace(_WHOLE_ORPO, method=TrainingMethod.CPO),
    TrainingMethod.SIMPO: replace(_WHOLE_ORPO, method=TrainingMethod.SIMPO),
}
#: A row for each completion, of which alone there are log-probabilities; the reference's come with
#: the generation.
_GRPO = Objective(
    method=TrainingMethod.GRPO,
    reference=Reference.START,
    reference_first=True,
    tiles=_TILES,
    since=_SINCE,
)
_RLOO = replace(_GRPO, method=TrainingMethod.RLOO)
_OBJECTIVES = {one.method: one for one in (_SFT, _DPO, REWARD, _KTO, _GRPO, _RLOO)}
#: The methods whose configs have `precompute_ref_log_probs`.
_PRECOMPUTING = frozenset({TrainingMethod.DPO, TrainingMethod.KTO})
_KTO_LOSS = text("loss_type", "kto")

SYNCED_AND_PRECOMPUTED = Refusal(
    message="You cannot use `sync_ref_model=True` together with `precompute_ref_log_probs=True`.",
    when=lambda settings, _, plan: bool(_SYNC.of(settings) and plan.precompute_reference),
)

ONE_SAMPLE = Refusal(
    message="Actual (not effective) batch size must be > 1. KTO will not work properly because "
    "the KL term will be equivalent to the implied reward.",
    when=lambda _, job, plan: job.compares_samples and plan.micro_batch <= 1,
)


def without_words(objective: Objective) -> Objective:
    """Return an objective of whole logits that trains on no answer word by word."""
    return replace(objective, logit_bytes=_WHOLE_DPO.logit_bytes)


def requested(plan: Plan, method: TrainingMethod) -> Plan:
    """Return a plan that was read as trl sft's as one of the command's own method."""
    if method in trl_generation.METHODS:  # what comes from the data is never cut
        plan = replace(plan, sequence_length=None, overlong=None)
    else:
        plan = replace(plan, completion_length=None, generation_batch=None)
        plan = replace(plan, engine_share=None, engine_sleeps=None)
    if method not in _PRECOMPUTING:
        plan = replace(plan, precompute_reference=None)
    if method is TrainingMethod.REWARD:  # a score for each token, and no sample is ever cut
        plan = replace(plan, loss_kernel=None, overlong=Overlong.DROPPED)
    return plan


def compares_samples(method: TrainingMethod, settings: Settings) -> bool:
    """Return whether the loss of a sample depends on the others in its micro batch."""
    if method is TrainingMethod.KTO:
        return _KTO_LOSS.of(settings) == "kto"
    return method is TrainingMethod.GRPO and trl_generation.averages_locally(settings)


def is_tiled(settings: Settings) -> bool:
    """Return whether trl sft's loss comes from tiles of the logits, never from all of them.

    Label smoothing takes them whole, and smooths nothing of DFT's loss.
    """
    return settings.get("loss_type") == "dft" or not _SMOOTHING.of(settings)


def memory_settings(
    found: MemorySettings, method: TrainingMethod, settings: Settings
) -> MemorySettings:
    """Return the memory settings of a TRL job with what its method computes."""
    objective = _OBJECTIVES.get(method)
    if objective is None or (objective is _SFT and not is_tiled(settings)):
        return found
    lora = found.lora
    disabled = _KEEPS_DROPOUT if method in trl_generation.METHODS else _DISABLE_DROPOUT
    if lora is not None and objective is not _SFT and disabled.of(settings):
        lora = replace(lora, dropout=0.0)
    if method in trl_generation.METHODS:
        found = trl_generation.memory_settings(found, settings)
        objective = trl_generation.compared(objective, method, settings)
    return replace(found, objective=objective, lora=lora)
