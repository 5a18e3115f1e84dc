"""QwenLM/Qwen's shell scripts: the one command that each of them ends with.

    bash finetune/finetune_lora_ds.sh -m MODEL -d DATA [--deepspeed CONFIG]

The command is taken from the script's own text where it can be read, so that a user's edits
hold; else from what the scripts had last. Source: QwenLM/Qwen, finetune/*.sh.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from oomguard.adapters.contract import JobRequest
from oomguard.errors import ConfigError, Where

#: What the scripts export.
EXPORTED = ("CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_VISIBLE_DEVICES")
_SHELLS = {"bash", "sh"}
_NAME = re.compile(r"finetune_(?P<kind>ds|lora_ds|qlora_ds|lora_single_gpu|qlora_single_gpu)\.sh")
_OPTIONS = {"-m": "MODEL", "--model": "MODEL", "-d": "DATA", "--data": "DATA"}
_DEEPSPEED = {"--deepspeed": "DS_CONFIG_PATH"}
_ASSIGNED = re.compile(r"^(?P<export>export\s+)?(?P<name>[A-Za-z_]\w*)=(?P<value>.*)$")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\}|(?P<bare>\w+))")
_PROGRAMS = ("torchrun", "python", "deepspeed", "accelerate")

_SHARED = {
    "output_dir": "output_qwen",
    "num_train_epochs": "5",
    "per_device_eval_batch_size": "1",
    "evaluation_strategy": "no",
    "save_strategy": "steps",
    "save_steps": "1000",
    "save_total_limit": "10",
    "weight_decay": "0.1",
    "adam_beta2": "0.95",
    "warmup_ratio": "0.01",
    "lr_scheduler_type": "cosine",
    "logging_steps": "1",
    "report_to": "none",
    "model_max_length": "512",
    "lazy_preprocess": "True",
    "gradient_checkpointing": "True",
}
_ZERO2, _ZERO3 = "finetune/ds_config_zero2.json", "finetune/ds_config_zero3.json"


def is_script(argv: tuple[str, ...]) -> bool:
    """Return whether a command line starts one of the scripts."""
    return _script(argv) is not None


def path(request: JobRequest) -> str:
    """Return the script (absolute)."""
    return posixpath.join(request.cwd, _script(request.argv) or "")


def unwrapped(request: JobRequest) -> JobRequest:
    """Return the request for the line that the script would start.

    Raises:
        ConfigError: for an option that the script does not have, or a script without the line.
    """
    kind = _kind(request.argv)
    given = _given(request, kind)
    text = request.files.get(path(request))
    argv, exported = _from_text(text, given, request) if text else _known(kind, given, request)
    env = {**request.env, **exported}
    gpus = min(request.gpus, 1) if kind.endswith("single_gpu") else request.gpus
    return replace(request, argv=argv, env=env, gpus=gpus)


def _script(argv: tuple[str, ...]) -> str | None:
    args = argv[1:] if argv and posixpath.basename(argv[0]) in _SHELLS else argv
    named = args and _NAME.fullmatch(posixpath.basename(args[0]))
    return args[0] if named else None


def _kind(argv: tuple[str, ...]) -> str:
    found = _NAME.fullmatch(posixpath.basename(_script(argv) or ""))
    return found["kind"] if found else ""


def _given(request: JobRequest, kind: str) -> dict[str, str]:
    at = request.argv.index(_script(request.argv) or "") + 1
    args = request.argv[at:]
    known = {**_OPTIONS, **(_DEEPSPEED if kind == "lora_ds" else {})}
    values: dict[str, str] = {}
    for name, value in zip(args[::2], (*args[1::2], ""), strict=False):
        if name not in known or not value:
            raise ConfigError(
                f"finetune_{kind}.sh takes {', '.join(known)}, each with a value",
                where=Where(key=name),
            )
        values[known[name]] = value
    return values


def _known(
    kind: str, given: Mapping[str, str], request: JobRequest
) -> tuple[tuple[str, ...], dict[str, str]]:
    is_q, is_full, is_single = kind.startswith("q"), kind == "ds", kind.endswith("single_gpu")
    model = given.get("MODEL", "Qwen/Qwen-7B-Chat-Int4" if is_q else "Qwen/Qwen-7B")
    zero = _ZERO3 if is_full else None if kind == "lora_single_gpu" else _ZERO2
    flags = {
        "model_name_or_path": model,
        "data_path": given.get("DATA", "path_to_data"),
        "fp16" if is_q else "bf16": "True",
        "per_device_train_batch_size": "1" if is_full else "2",
        "gradient_accumulation_steps": "16" if is_full else "8",
        "learning_rate": "1e-5" if is_full else "3e-4",
        **_SHARED,
        **({} if is_full else {"use_lora": "True"}),
        **({"q_lora": "True"} if is_q else {}),
        **({"deepspeed": given.get("DS_CONFIG_PATH", zero)} if zero else {}),
    }
    args = tuple(word for key, value in flags.items() for word in (f"--{key}", value))
    exported = {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    if is_single:
        return ("python", "finetune.py", *args), {**exported, "CUDA_VISIBLE_DEVICES": "0"}
    return ("torchrun", *_distributed(request), "finetune.py", *args), exported


def _distributed(request: JobRequest) -> tuple[str, ...]:
    asked = {
        "nproc_per_node": str(max(1, request.gpus)),
        "nnodes": request.env.get("NNODES", "1"),
        "node_rank": request.env.get("NODE_RANK", "0"),
        "master_addr": request.env.get("MASTER_ADDR", "localhost"),
        "master_port": request.env.get("MASTER_PORT", "6001"),
    }
    return tuple(word for key, value in asked.items() for word in (f"--{key}", value))


def _from_text(
    text: str, given: Mapping[str, str], request: JobRequest
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Follow the script's assignments to its last command; loops and functions change nothing."""
    values, exported, argv = dict(request.env), dict[str, str](), tuple[str, ...]()
    for statement in _statements(text):
        assigned = _ASSIGNED.match(statement)
        if assigned:
            name, raw = assigned["name"], assigned["value"]
            is_count = "device_count" in raw
            value = str(max(1, request.gpus)) if is_count else _filled(raw, values)
            values[name] = given.get(name, _unquoted(value))
            if assigned["export"]:
                exported[name] = values[name]
        elif statement.split(maxsplit=1)[0] in _PROGRAMS:
            argv = tuple(shlex.split(_filled(statement, values)))
    if not argv:
        raise ConfigError(
            "no line that starts finetune.py is found in it",
            where=Where(file=path(request)),
            next_step="Give oomguard that line itself: torchrun ... finetune.py ...",
        )
    return argv, exported


def _statements(text: str) -> list[str]:
    """Split a script into statements at its own indentation; quoted ones may span lines."""
    joined = re.sub(r"\\\n", " ", text)
    joined = re.sub(r'="([^"]*)"', lambda m: '="' + " ".join(m[1].split()) + '"', joined)
    lines = [line for line in joined.splitlines() if line[:1] not in ("", " ", "\t", "#")]
    return [line.split(" #")[0].strip() for line in lines]


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _VARIABLE.sub(
        lambda m: values.get(m["braced"] or m["bare"], m["default"] or ""),
        text,
    )


def _unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if value[:1] in ("'", '"') and value[-1:] == value[:1] else value
