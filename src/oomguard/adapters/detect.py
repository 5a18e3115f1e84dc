"""What tells scripts and configs apart that share the Trainer's flags and keys."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from oomguard.adapters.launchers import LauncherCommand
from oomguard.configfile.flags import Flags

#: Flags that QwenLM/Qwen's finetune.py has and the Trainer has not; any two tell it.
_QWEN_FLAGS = ("lazy_preprocess", "q_lora", "use_lora", "model_max_length", "data_path")
#: Keys that only these frameworks have, among those whose configs look like the Trainer's.
_LLAMAFACTORY_KEYS = frozenset(
    {"finetuning_type", "stage", "cutoff_len", "dataset_dir", "template"}
)
_TRL_KEYS = frozenset(
    {"dataset_name", "datasets", "dataset_text_field", "use_peft", "load_in_4bit", "load_in_8bit"}
    | {"use_bnb_nested_quant", "activation_offloading", "accelerate_config"}
)
_SWIFT_KEYS = frozenset({"tuner_type", "train_type", "model_type", "quant_bits", "freeze_vit"})
_LOFTQ_FLAGS = ("loftq_bits", "loftq_iter")
_ENOUGH = 2


def is_qwen(launch: LauncherCommand) -> bool:
    """Return whether this starts QwenLM/Qwen's finetune.py."""
    words = Flags(words=launch.words)
    stated = sum(words.has(flag) for flag in _QWEN_FLAGS)
    return posixpath.basename(launch.program) == "finetune.py" and stated >= _ENOUGH


def is_loftq(launch: LauncherCommand) -> bool:
    """Return whether this starts a PEFT script whose flags ask for LoftQ."""
    words = Flags(words=launch.words)
    asked = words.get("init_lora_weights") == "loftq"
    return not launch.is_module and (asked or any(words.has(flag) for flag in _LOFTQ_FLAGS))


def is_trl(launch: LauncherCommand) -> bool:
    """Return whether this starts TRL's SFT script by its path."""
    return launch.program.endswith("trl/scripts/sft.py")


def is_known_script(launch: LauncherCommand) -> bool:
    """Return whether a script has an adapter of its own."""
    return is_qwen(launch) or is_loftq(launch) or is_trl(launch)


def is_llamafactory_config(document: Mapping[str, object]) -> bool:
    """Return whether a flat config has keys of LLaMA-Factory alone."""
    return not _LLAMAFACTORY_KEYS.isdisjoint(document)


def is_axolotl_config(document: Mapping[str, object]) -> bool:
    """Return whether a config names its model and data as axolotl does."""
    return "base_model" in document and "model_name_or_path" not in document


def is_swift_config(document: Mapping[str, object]) -> bool:
    """Return whether a flat config names its model and data as ms-swift does."""
    data = "dataset" in document or not _SWIFT_KEYS.isdisjoint(document)
    return isinstance(document.get("model"), str) and data and "base_model" not in document


def is_torchtune_config(document: Mapping[str, object]) -> bool:
    """Return whether a config builds its model from a component, as torchtune does."""
    model = document.get("model")
    return isinstance(model, dict) and "_component_" in model


def is_trl_config(document: Mapping[str, object]) -> bool:
    """Return whether a flat config has keys of TRL's SFT script."""
    return not _TRL_KEYS.isdisjoint(document) and not (
        is_llamafactory_config(document) or is_axolotl_config(document) or is_swift_config(document)
    )


def is_known_config(document: Mapping[str, object]) -> bool:
    """Return whether a config has keys of a framework that shares some with the Trainer."""
    tests = (
        is_llamafactory_config,
        is_trl_config,
        is_axolotl_config,
        is_swift_config,
        is_torchtune_config,
    )
    return any(test(document) for test in tests)
