"""What the code of a script sets by itself, whatever its flags say.

Source: transformers 5.23, training_args.py, utils/quantization_config.py, modeling_utils.py; trl
1.16, trainer/*_config.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from oomguard.configfile.layered import Settings
from oomguard.job.unmodelled import Direction, Unmodelled

#: Settings that decide memory, by the names that code and flags have in common -> the value that is
#: counted where no flag states one.
_COUNTED: dict[str, object] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "fp16": False,
    "optim": "adamw_torch",
    "deepspeed": None,
    "fsdp": "",
    "auto_find_batch_size": False,
    "use_liger_kernel": False,
    "torch_compile": False,
    "packing": False,
    "max_length": None,
    "max_seq_length": None,
    "max_prompt_length": None,
    "max_completion_length": None,
    "num_generations": None,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "torch_dtype": None,
    "dtype": None,
    "attn_implementation": "sdpa",
}
#: Names of one setting: a value that comes from either is the flag's own.
_ALIKE = (
    frozenset({"max_length", "max_seq_length", "model_max_length", "cutoff_len", "block_size"}),
    frozenset({"torch_dtype", "dtype", "model_dtype"}),
    frozenset({"deepspeed", "deepspeed_config"}),
)
#: Values whose memory is that of another one.
_EQUAL = (
    (re.compile(r"flash_attention_\d"), "sdpa"),
    (re.compile(r"adamw_(torch_fused|hf|apex_fused)"), "adamw_torch"),
)
_ARGUMENTS = re.compile(r"(Arguments|Args|TrainerConfig|Config)$")
_OTHER_CONFIGS = re.compile(r"^(Lora|Auto|Generation|Peft|Pretrained|Model|\w+Vision)Config$")
_LOADS, _DECLARES = "from_pretrained", "add_argument"
_SWITCHES_ON = {"gradient_checkpointing_enable": "gradient_checkpointing"}
#: Objects whose attributes are settings of a training.
_HOLDER = re.compile(r"args|arguments|config", re.IGNORECASE)
_UNKNOWN = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetInCode:
    """A setting that code gives a value; `value` is `_UNKNOWN` where it is computed.

    `is_default` says that a flag goes before it.
    """

    name: str
    line: int
    value: object
    is_default: bool = False


def overruled(settings: Settings, code: str) -> Iterator[Unmodelled]:
    """Yield the settings to which a script's code gives another value than is counted.

    A value that the code takes from a flag of the same name is the flag's own.
    """
    said: set[str] = set()
    for one in _settings_of(code):
        stated = settings.has(one.name)
        counted = settings.get(one.name) if stated else _COUNTED[one.name]
        if one.name in said or (stated and one.is_default) or _same(one.value, counted):
            continue
        said.add(one.name)
        value = "" if one.value is _UNKNOWN else f" to {one.value}"
        yield Unmodelled(
            key=one.name,
            effect=f"the script sets it{value} in its line {one.line}, which is not counted",
            direction=Direction.EITHER,
        )


def _settings_of(code: str) -> Iterator[SetInCode]:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):  # a null byte is a ValueError
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _of_call(node)
        elif isinstance(node, ast.ClassDef) and _ARGUMENTS.search(node.name):
            yield from _of_fields(node)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and _HOLDER.search(ast.unparse(target.value)):
                    yield from _given(target.attr, node.value)


def _of_call(node: ast.Call) -> Iterator[SetInCode]:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    called = node.func.id if isinstance(node.func, ast.Name) else called
    if called == _DECLARES:
        yield from _of_flag(node)
    if called in _SWITCHES_ON:
        yield SetInCode(name=_SWITCHES_ON[called], line=node.lineno, value=True)
    is_config = _ARGUMENTS.search(called) and not _OTHER_CONFIGS.match(called)
    if not is_config and called != _LOADS:
        return
    for word in node.keywords:
        if word.arg is not None:
            yield from _given(word.arg, word.value)


def _of_fields(node: ast.ClassDef) -> Iterator[SetInCode]:
    """Yield the defaults of a dataclass of flags."""
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and one.value:
            words = one.value.keywords if isinstance(one.value, ast.Call) else []
            default = next((word.value for word in words if word.arg == "default"), one.value)
            yield from _default(one.target.id, default)


def _of_flag(node: ast.Call) -> Iterator[SetInCode]:
    """Yield the default of a flag of argparse."""
    names = [one.value for one in node.args if isinstance(one, ast.Constant)]
    default = next((word.value for word in node.keywords if word.arg == "default"), None)
    for name in names:
        if default is not None and isinstance(name, str):
            yield from _default(name.lstrip("-").replace("-", "_"), default)


def _default(name: str, node: ast.expr) -> Iterator[SetInCode]:
    for one in _given(name, node):
        yield replace(one, is_default=True)


def _given(name: str, node: ast.expr) -> Iterator[SetInCode]:
    """Yield what a value sets, unless the code takes it from something of the same name."""
    alike = next((names for names in _ALIKE if name in names), frozenset({name}))
    if name in _COUNTED and not _names(node) & alike:
        yield SetInCode(name=name, line=node.lineno, value=_value(node))


def _names(node: ast.expr) -> set[str]:
    """Return the names, attributes and texts that an expression is made of."""
    found: set[str] = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            found.add(one.id)
        elif isinstance(one, ast.Attribute):
            found.add(one.attr)
        elif isinstance(one, ast.Constant) and isinstance(one.value, str):
            found.add(one.value)
    return found


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Attribute):  # torch.bfloat16
        is_torchs = isinstance(node.value, ast.Name) and node.value.id == "torch"
        return node.attr if is_torchs else _UNKNOWN
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _UNKNOWN


def _same(value: object, counted: object) -> bool:
    """Return whether code and flag give the same value; an unset one is false or nothing."""
    if value is _UNKNOWN:
        return False
    empty = ("", "none", "false", "no")
    said, other = (_plain(one) for one in (value, counted))
    return said == other or (said in empty and other in empty)


def _plain(value: object) -> str:
    text = str(value).lower().removeprefix("torch.")
    return next((same for pattern, same in _EQUAL if pattern.fullmatch(text)), text)
