"""Print a memory limit for this machine that a tiny variant exceeds at first.

    oomguard launch RECIPE $(python recipes/find_cap.py RECIPE)

Run it after make_tiny.py, in the same folder and with the framework's Python. It runs the job twice
without oomguard, with settings that are to fit and with settings that are not; the limit lies
halfway between the two peaks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml
from peak_memory import peak_data_bytes

MIB = 1 << 20
#: Arguments that make a tiny variant fit, and not fit, where the micro batch does not decide it.
OTHERS = {
    "tiny/loftq/model": (("--staged", "True", "--loftq_bits", "4"), ()),
    "tiny/vision/model": (
        ("freeze_vision_tower=true", "freeze_multi_modal_projector=true"),
        (),
    ),
}


def plain_command(path: str, config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the command that runs a recipe without oomguard."""
    block = config.get("oomguard")
    if isinstance(block, dict):
        own = {key: value for key, value in config.items() if key != "oomguard"}
        flags = [flag for key, value in own.items() for flag in (f"--{key}", str(value))]
        return (*block["command"], *flags)
    if "finetuning_type" in config:
        return ("llamafactory-cli", "train", path)
    if "model" in config:
        return ("tune", "run", "lora_finetune_single_device", "--config", path)
    starts = ("litgpt", "finetune_lora") if "checkpoint_dir" in config else ("trl", "sft")
    return (*starts, "--config", path)


def micro_batch_flags(config: Mapping[str, object], samples: int) -> tuple[str, ...]:
    """Return the arguments for another micro batch at the same global batch."""
    if "checkpoint_dir" in config:
        return ("--train.micro_batch_size", str(samples))
    if "batch_size" in config:
        accumulation = int(str(config["batch_size"])) // samples
        return (f"batch_size={samples}", f"gradient_accumulation_steps={accumulation}")
    sizes = {
        "per_device_train_batch_size": samples,
        "gradient_accumulation_steps": int(str(config["per_device_train_batch_size"])) // samples,
    }
    if "finetuning_type" in config:
        return tuple(f"{key}={value}" for key, value in sizes.items())
    return tuple(flag for key, value in sizes.items() for flag in (f"--{key}", str(value)))


def variants(config: Mapping[str, object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the arguments with which a tiny variant fits, and those with which it does not."""
    found = OTHERS.get(str(config.get("model_name_or_path")))
    train = config.get("train", config)
    keys = ("per_device_train_batch_size", "micro_batch_size", "batch_size")
    whole = next((train[key] for key in keys if key in train), 1)
    return found or (micro_batch_flags(config, whole // 4), micro_batch_flags(config, whole // 2))


def main() -> None:
    """Print the flag for `oomguard launch`."""
    path = sys.argv[1]
    config = yaml.safe_load(Path(path).read_text())
    argv = plain_command(path, config)
    peaks = [
        peak_data_bytes((*argv, *flags), cwd=Path.cwd(), env=os.environ)
        for flags in variants(config)
    ]
    print(f"--host-memory={sum(peaks) // len(peaks) // MIB}MiB")  # noqa: T201


if __name__ == "__main__":
    main()
