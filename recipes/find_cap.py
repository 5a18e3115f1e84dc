"""Print a memory cap for this machine under which a scaled-down twin first runs out.

    oomguard launch RECIPE $(python recipes/find_cap.py RECIPE)

Run from the root of the repository, with the Python of the framework, after the twin's model was
made. The job is run by hand twice, as it fits in the end and as it does not; the cap lies between.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "frameworks"))

from caps import peak_data_bytes

MIB = 1 << 20
#: Words that make a twin fit, and fit no more, where it is not the micro batch that decides.
OTHERS = {
    "tiny/loftq/model": (("--staged", "True", "--loftq_bits", "4"), ()),
    "tiny/vision/model": (
        ("freeze_vision_tower=true", "freeze_multi_modal_projector=true"),
        (),
    ),
}


def by_hand(path: str, config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the command that runs a recipe without oomguard."""
    block = config.get("oomguard")
    if isinstance(block, dict):
        own = {key: value for key, value in config.items() if key != "oomguard"}
        flags = [word for key, value in own.items() for word in (f"--{key}", str(value))]
        return (*block["command"], *flags)
    if "finetuning_type" in config:
        return ("llamafactory-cli", "train", path)
    if "model" in config:
        return ("tune", "run", "lora_finetune_single_device", "--config", path)
    starts = ("litgpt", "finetune_lora") if "checkpoint_dir" in config else ("trl", "sft")
    return (*starts, "--config", path)


def at_once(config: Mapping[str, object], samples: int) -> tuple[str, ...]:
    """Return the words for another micro batch at the same global batch."""
    if "checkpoint_dir" in config:
        return ("--train.micro_batch_size", str(samples))
    if "batch_size" in config:
        accumulation = int(str(config["batch_size"])) // samples
        return (f"batch_size={samples}", f"gradient_accumulation_steps={accumulation}")
    whole = int(str(config["per_device_train_batch_size"]))
    sizes = {
        "per_device_train_batch_size": samples,
        "gradient_accumulation_steps": whole // samples,
    }
    if "finetuning_type" in config:
        return tuple(f"{key}={value}" for key, value in sizes.items())
    return tuple(word for key, value in sizes.items() for word in (f"--{key}", str(value)))


def variants(config: Mapping[str, object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words with which a twin fits, and with which it does not."""
    found = OTHERS.get(str(config.get("model_name_or_path")))
    train = config.get("train", config)
    keys = ("per_device_train_batch_size", "micro_batch_size", "batch_size")
    whole = next((train[key] for key in keys if key in train), 1)
    return found or (at_once(config, whole // 4), at_once(config, whole // 2))


def main() -> None:
    """Print the flag for `oomguard launch`."""
    path = sys.argv[1]
    config = yaml.safe_load(Path(path).read_text())
    argv = by_hand(path, config)
    peaks = [
        peak_data_bytes((*argv, *words), cwd=Path.cwd(), env=os.environ)
        for words in variants(config)
    ]
    print(f"--host-memory={sum(peaks) // len(peaks) // MIB}MiB")  # noqa: T201


if __name__ == "__main__":
    main()
