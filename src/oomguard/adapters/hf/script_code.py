"""What the code of a script sets by itself, whatever its flags say. Pure: text in.

Source: transformers 5.23, training_args.py, utils/quantization_config.py, modeling_utils.py; peft
0.21, tuners/lora/config.py; trl 1.16, trainer/*_config.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache

from oomguard.adapters.hf.script_tree import literal, parsed

#: The value of a setting that code computes.
COMPUTED = object()
MODEL = "model_name_or_path"
#: Arguments of the configs of a training and of the call that loads a model, which are flags too.
_SHARED = frozenset(
    {
        *("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"),
        *("bf16", "fp16", "optim", "deepspeed", "fsdp", "auto_find_batch_size", "packing"),
        *("use_liger_kernel", "torch_compile", "max_length", "max_seq_length", "num_generations"),
        *("max_prompt_length", "max_completion_length", "load_in_4bit", "load_in_8bit"),
        *("torch_dtype", "dtype", "attn_implementation"),
    }
)
#: Configs whose arguments have other names as flags.
_CONFIGS: Mapping[str, Mapping[str, str]] = {
    "LoraConfig": {
        "r": "lora_r",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "target_modules": "lora_target_modules",
        "modules_to_save": "lora_modules_to_save",
        "use_dora": "use_dora",
    },
    "BitsAndBytesConfig": {
        "load_in_4bit": "load_in_4bit",
        "load_in_8bit": "load_in_8bit",
        "bnb_4bit_quant_type": "bnb_4bit_quant_type",
        "bnb_4bit_use_double_quant": "use_bnb_nested_quant",
    },
}
_KNOWN = _SHARED.union({MODEL}, *(flags.values() for flags in _CONFIGS.values()))
#: Names of one setting.
_ALIKE = (
    frozenset({"max_length", "max_seq_length", "model_max_length", "cutoff_len", "block_size"}),
    frozenset({"torch_dtype", "dtype", "model_dtype"}),
    frozenset({"deepspeed", "deepspeed_config"}),
    frozenset({MODEL, "model", "model_name", "model_id", "base_model"}),
)
_ARGUMENTS = re.compile(r"(Arguments|Args|TrainerConfig|Config)$")
_OTHER_CONFIGS = re.compile(r"^(Auto|Generation|Peft|Pretrained|Model|\w+Vision)Config$")
_TRAINER = re.compile(r"Trainer$")
_OTHER_LOADS = re.compile(r"Tokenizer|Processor|Config|Extractor")
_LOADS, _DECLARES, PREPARES = "from_pretrained", "add_argument", "prepare_model_for_kbit_training"
_NAMES_MODEL = ("pretrained_model_name_or_path", "model_name")
#: Actions of argparse that store a value of their own, and the default that they have.
_SWITCHES: Mapping[str, bool] = {"store_true": False, "store_false": True}
_SWITCHES_ON = {"gradient_checkpointing_enable": "gradient_checkpointing"}
_BRANCHES = (ast.If, ast.IfExp, ast.Try, ast.Match, ast.BoolOp, ast.While, ast.ExceptHandler)
#: Objects whose attributes are settings of a training.
_HOLDER = re.compile(r"args|arguments|config", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetInCode:
    """A setting that code gives a value; `value` is `COMPUTED` where it does not stand there.

    `is_default` says that a flag goes before it; `by_load` that the call that loads a model has it;
    `in_branch` that a branch sets it, which may not be taken; `flag` is a flag of another name that
    it is taken from, in underscores.
    """

    name: str
    line: int
    value: object
    is_default: bool = False
    by_load: bool = False
    in_branch: bool = False
    flag: str = ""


@lru_cache(maxsize=8)  # a ladder asks for each plan
def settings_in(code: str) -> tuple[SetInCode, ...]:
    """Return what a script sets, in the order of its text; nothing if it is no Python."""
    tree = parsed(code)
    if tree is None:
        return ()
    found = _Reader(_constants(tree)).read(tree)
    return tuple(sorted(found, key=lambda one: one.line))


@lru_cache(maxsize=8)
def defaults_in(code: str) -> Mapping[str, object]:
    """Return the literal defaults of a script's own flags, by their names in underscores."""
    tree = parsed(code)
    if tree is None:
        return {}
    constants = _constants(tree)
    found = {
        name: literal(_constant(node, constants), COMPUTED)
        for one in ast.walk(tree)
        for name, node in _declared(one)
    }
    return {name: value for name, value in found.items() if value is not COMPUTED}


def prepares(code: str) -> bool:
    """Return whether a script calls PEFT's `prepare_model_for_kbit_training`, not in a branch."""
    tree = parsed(code)
    return tree is not None and any(
        isinstance(node, ast.Call) and _called(node) == PREPARES and not in_branch
        for node, in_branch in _with_branches(tree)
    )


def _constants(tree: ast.AST) -> dict[str, ast.expr]:
    """Return the names to which a script gives one literal value, and nothing else."""
    given: dict[str, list[ast.expr | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            given.setdefault(node.id, []).append(None)
        elif isinstance(node, ast.arg):
            given.setdefault(node.arg, []).append(None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            (target,) = node.targets
            if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant):
                given[target.id].append(node.value)
    # One place that stores the name, and the literal that is stored there.
    return {
        name: places[1]
        for name, places in given.items()
        if len(places) == 2 and places[1] is not None  # noqa: PLR2004
    }


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one script, whose constants are known."""

    constants: Mapping[str, ast.expr] = field(default_factory=dict)

    def read(self, tree: ast.AST) -> Iterator[SetInCode]:
        """Yield what calls, dataclasses and assignments set."""
        for node, in_branch in _with_branches(tree):
            for one in self._of_node(node):
                yield replace(one, in_branch=in_branch)

    def _of_node(self, node: ast.AST) -> Iterator[SetInCode]:
        if isinstance(node, ast.Call):
            yield from self._of_call(node)
        elif isinstance(node, ast.ClassDef):
            yield from self._of_defaults(node)
        elif isinstance(node, ast.Assign):
            yield from self._of_assignment(node)

    def _of_assignment(self, node: ast.Assign) -> Iterator[SetInCode]:
        for one in node.targets:
            if isinstance(one, ast.Attribute) and _HOLDER.search(ast.unparse(one.value)):
                yield from self._given(one.attr, node.value)

    def _of_call(self, node: ast.Call) -> Iterator[SetInCode]:
        called = _called(node)
        words = {word.arg: word.value for word in node.keywords if word.arg is not None}
        if called == _DECLARES:
            yield from self._of_defaults(node)
        elif called in _SWITCHES_ON:
            yield SetInCode(name=_SWITCHES_ON[called], line=node.lineno, value=True)
        elif called == PREPARES:
            yield from self._of_preparing(node, words)
        elif called == _LOADS:
            yield from self._of_load(node, words)
        elif _TRAINER.search(called) and _names_model(words.get("model")):
            yield from self._given(MODEL, words["model"])
        elif _ARGUMENTS.search(called) and not _OTHER_CONFIGS.match(called):
            flags = _CONFIGS.get(called)
            for name, value in words.items():
                yield from self._given(flags.get(name, "") if flags else name, value)

    def _of_load(self, node: ast.Call, words: dict[str, ast.expr]) -> Iterator[SetInCode]:
        """Yield what the call that loads a model is given, not that of a tokenizer."""
        if _OTHER_LOADS.search(ast.unparse(node.func)):
            return
        names = [node.args[0]] if node.args else []
        names += [words[key] for key in _NAMES_MODEL if key in words]
        for name, value in [*((MODEL, name) for name in names), *words.items()]:
            for one in self._given(name, value):
                yield replace(one, by_load=True)

    def _of_preparing(self, node: ast.Call, words: dict[str, ast.expr]) -> Iterator[SetInCode]:
        """Yield that PEFT switches checkpointing on in what it prepares, unless told not to.

        Source: peft 0.21, utils/other.py (prepare_model_for_kbit_training).
        """
        told = words.get("use_gradient_checkpointing", node.args[1] if node.args[1:] else None)
        told = told or ast.copy_location(ast.Constant(True), node)
        for one in self._given("gradient_checkpointing", told):
            if one.value is not False:
                yield one

    def _of_defaults(self, node: ast.Call | ast.ClassDef) -> Iterator[SetInCode]:
        for name, default in _declared(node):
            for one in self._given(name, default):
                yield replace(one, is_default=True)

    def _given(self, name: str, node: ast.expr) -> Iterator[SetInCode]:
        """Yield what a value sets, unless the code takes it from something of the same name."""
        if name not in _KNOWN:
            return
        node = _constant(node, self.constants)
        flag = _flag(node)
        if not _names(node) & alike(name) or (flag and flag != name):
            yield SetInCode(name=name, line=node.lineno, value=_value(node), flag=flag)


def alike(name: str) -> frozenset[str]:
    """Return the names of one setting: a value that comes from one of them is the flag's own."""
    return next((names for names in _ALIKE if name in names), frozenset({name}))


def _names_model(node: ast.expr | None) -> bool:
    """Return whether what a trainer is given is a model's name, and not a model."""
    return isinstance(node, ast.Constant) or (node is not None and bool(_flag(node)))


def _constant(node: ast.expr, constants: Mapping[str, ast.expr]) -> ast.expr:
    """Return the literal that a constant's name means, on the line of that name."""
    if isinstance(node, ast.Name) and node.id in constants:
        return ast.copy_location(copy(constants[node.id]), node)
    return node


def _flag(node: ast.expr) -> str:
    """Return the flag whose value an expression is: `args.batch_size`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if _HOLDER.search(node.value.id) else ""
    return ""


def _declared(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield the defaults of the flags that a call of argparse or a dataclass declares."""
    if isinstance(node, ast.ClassDef) and _ARGUMENTS.search(node.name):
        for one in node.body:
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and one.value:
                words = one.value.keywords if isinstance(one.value, ast.Call) else []
                default = next((word.value for word in words if word.arg == "default"), one.value)
                yield one.target.id, default
    elif isinstance(node, ast.Call) and _called(node) == _DECLARES:
        given = {word.arg: word.value for word in node.keywords}
        stored = given.get("default")
        switch = str(literal(given["action"], None)) if "action" in given else ""
        if stored is None and switch in _SWITCHES:
            stored = ast.copy_location(ast.Constant(_SWITCHES[switch]), node)
        if stored is None:
            return
        for flag in node.args:
            if isinstance(flag, ast.Constant):
                yield str(flag.value).lstrip("-").replace("-", "_"), stored


def _with_branches(tree: ast.AST) -> Iterator[tuple[ast.AST, bool]]:
    """Yield each node of a tree, and whether a branch holds it."""
    waiting = [(tree, False)]
    while waiting:
        node, in_branch = waiting.pop()
        yield node, in_branch
        branches = isinstance(node, _BRANCHES) and not _is_entry(node)
        waiting += [(child, in_branch or branches) for child in ast.iter_child_nodes(node)]


def _is_entry(node: ast.AST) -> bool:
    """Return whether a branch is taken by every script that is run: `if __name__ == ...`."""
    return isinstance(node, ast.If) and "__name__" in _names(node.test)


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _names(node: ast.expr) -> set[str]:
    """Return the names, attributes and keys that an expression is made of."""
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
        return node.attr if is_torchs else COMPUTED
    return literal(node, COMPUTED)
