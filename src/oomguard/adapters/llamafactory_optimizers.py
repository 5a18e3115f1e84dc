"""The optimizers that LLaMA-Factory makes in place of the one that `optim` names.

Source: llamafactory 0.9.5, train/trainer_utils.py (create_custom_optimizer: the first that is
switched on), hparams/finetuning_args.py.
"""

from __future__ import annotations

from oomguard.adapters import fields
from oomguard.adapters.fields import flag, number
from oomguard.adapters.hf import training_arguments as hf
from oomguard.configfile.layered import Settings
from oomguard.job.optimizer import ADAM_MINI, MUON_AND_ADAMW, States, low_rank

GALORE, APOLLO, BADAM = flag("use_galore"), flag("use_apollo"), flag("use_badam")
_MINI, _MUON = flag("use_adam_mini"), flag("use_muon")
_PROJECTED = {
    name: (number(f"{name}_rank", 16), fields.text(f"{name}_target", "all"),
           fields.text(f"{name}_proj_type", "std"), flag(f"{name}_layerwise"))
    for name in ("galore", "apollo")
}  # fmt: skip


def _projected(settings: Settings) -> str | None:
    """Return which optimizer of low rank is on; the first of them is the one that is made."""
    if GALORE.of(settings):
        return "galore"
    return "apollo" if APOLLO.of(settings) else None


def is_counted(settings: Settings) -> bool:
    """Return whether the states of an optimizer of low rank are counted.

    They are for AdamW on all matrices of the layers, each projected along its longer side.
    """
    name = _projected(settings)
    if name is None:
        return False
    _, target, kind, _ = _PROJECTED[name]
    usual = target.of(settings) == "all" and kind.of(settings) == "std"
    return usual and hf.OPTIMIZER.of(settings) == "adamw_torch"


def states(settings: Settings) -> States | None:
    """Return what the optimizer keeps; None where the named one is made, or it is not known."""
    name = _projected(settings)
    if name is not None:
        return low_rank(_PROJECTED[name][0].of(settings)) if is_counted(settings) else None
    if settings.get("loraplus_lr_ratio") is not None or BADAM.of(settings):
        return None
    if _MINI.of(settings):
        return ADAM_MINI
    return MUON_AND_ADAMW if _MUON.of(settings) else None


def steps_in_backward(settings: Settings) -> bool:
    """Return whether every matrix has an optimizer of its own, which uses its gradient at once."""
    name = _projected(settings)
    if name is None:
        return hf.steps_in_backward(settings)
    return is_counted(settings) and _PROJECTED[name][3].of(settings)
