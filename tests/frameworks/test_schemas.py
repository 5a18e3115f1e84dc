"""The keys that adapters write, and the defaults that they assume, against the real packages.

TRL is imported. axolotl, ms-swift and torchtune are installed without what they depend on, which
needs a GPU or a compiler: their schemas are read as source.
"""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path

import known_settings
import pytest
import yaml
from assets import RECIPES
from environments import environment
from known_settings import imported, inherited

from decided import twice
from oomguard.adapters import axolotl, ms_swift, torchtune, trl
from oomguard.adapters.fields import Bindings
from oomguard.adapters.hf import liger
from oomguard.adapters.llamafactory_keys import LIGER_MODELS
from oomguard.adapters.settings import script_settings
from oomguard.adapters.settings.axolotl_settings import AXOLOTL
from oomguard.adapters.settings.deepspeed_settings import DEEPSPEED
from oomguard.adapters.settings.groups import SettingGroups
from oomguard.adapters.settings.litgpt_settings import LITGPT
from oomguard.adapters.settings.llamafactory_settings import LLAMAFACTORY
from oomguard.adapters.settings.swift_settings import FORMER, SWIFT, SWIFT_RLHF
from oomguard.adapters.settings.torchtune_settings import TORCHTUNE
from oomguard.adapters.settings.trainer_settings import SEQ2SEQ
from oomguard.adapters.settings.trl_settings import TRL
from oomguard.configfile.document import Document, Source
from oomguard.configfile.layered import Settings
from oomguard.job.plan import (
    LossKernel,
    Offload,
    Part,
    Precision,
    Quantization,
    Tuning,
)
from oomguard.job.unmodelled import TrainingMethod

VALUES: dict[str, list[object]] = {
    "checkpointing": [True],
    "precision": list(Precision),
    "quantization": list(Quantization),
    "tuning": list(Tuning),
    "frozen": [frozenset(Part)],
    "offload": [frozenset({Offload.ACTIVATIONS}), frozenset(Offload)],
    "loss_kernel": list(LossKernel),
}
#: Keys of transformers' own arguments, which ms-swift inherits and its source does not repeat.
TRAINERS = {
    *("auto_find_batch_size", "dataloader_pin_memory", "eval_accumulation_steps", "optim"),
    *("prediction_loss_only",),
}
DUMP = """
import dataclasses, json
from trl import DPOConfig, GRPOConfig, ModelConfig, SFTConfig
fields = [f for c in (GRPOConfig, DPOConfig, SFTConfig, ModelConfig) for f in dataclasses.fields(c)]
plain = lambda v: v if isinstance(v, (bool, int, float, str, type(None))) else str(v)
print(json.dumps({f.name: plain(getattr(f.default, "value", f.default)) for f in fields}))
"""


def keys_of(table: Bindings, text: str) -> dict[str, object]:
    """Return every key that some plan makes a table write, with the default that it assumes."""
    document = Document.parse(Source(path="/x.yaml", text=text))
    settings, found = Settings(file=document), {}
    for binding in table.bindings:
        for value in VALUES.get(binding.field, [4]):
            for key in binding.edits(settings, value) or {}:
                default = key.default
                found[key.name] = default.value if isinstance(default, Enum) else default
    return found


def site_packages(name: str) -> Path:
    (folder,) = environment(name).parents[1].glob("lib/python*/site-packages")
    return folder


def literals(files: list[Path]) -> dict[str, object]:
    """Read the annotated fields of all classes; `...` stands for a default that is no literal."""
    return {name: value for path in files for name, value in _fields(path)}


def _fields(path: Path) -> Iterator[tuple[str, object]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, _default(node.value)


def _default(node: ast.expr | None) -> object:
    if isinstance(node, ast.Call):
        named = {word.arg: word.value for word in node.keywords}
        node = named.get("default")
    try:
        return ast.literal_eval(node) if node is not None else ...
    except ValueError:
        return ...


def assert_known(keys: Mapping[str, object], real: Mapping[str, object]) -> None:
    assert [key for key in keys if key not in real] == []
    other = {
        key: (default, real[key])
        for key, default in keys.items()
        if real[key] not in (..., None) and default is not None and default != real[key]
    }
    assert other == {}


def test_trls_keys_and_defaults() -> None:
    done = subprocess.run(
        [environment("trl"), "-c", DUMP], check=True, capture_output=True, text=True
    )
    keys = keys_of(trl.BINDINGS, "dataset_num_proc: 1\n")
    assert len(keys) > 18
    real = json.loads(done.stdout.splitlines()[-1])
    assert real.pop("optim") == "adamw_torch_fused"  # from torch 2.8 on: the same memory
    assert keys.pop("optim") == "adamw_torch"
    assert_known(keys, real)


@pytest.mark.parametrize(
    ("groups", "package"),
    [
        *(
            pytest.param(
                groups, lambda name=name: inherited("swift", name) | imported("hf"), id=name
            )
            for name, groups in (("SftArguments", SWIFT), ("RLHFArguments", SWIFT_RLHF))
        ),
        pytest.param(AXOLOTL, lambda: inherited("axolotl", *known_settings.AXOLOTL), id="axolotl"),
        pytest.param(LLAMAFACTORY, lambda: imported("llamafactory"), id="LLaMA-Factory"),
        pytest.param(TRL[TrainingMethod.SFT], lambda: imported("trl"), id="trl sft"),
        pytest.param(TRL[TrainingMethod.DPO], lambda: imported("trl dpo"), id="trl dpo"),
        pytest.param(TRL[TrainingMethod.REWARD], lambda: imported("trl reward"), id="trl reward"),
        pytest.param(TRL[TrainingMethod.KTO], lambda: imported("trl kto"), id="trl kto"),
        pytest.param(TRL[TrainingMethod.GRPO], lambda: imported("trl grpo"), id="trl grpo"),
        pytest.param(TRL[TrainingMethod.RLOO], lambda: imported("trl rloo"), id="trl rloo"),
    ],
)
def test_every_setting_of_a_package_is_in_one_group(
    groups: SettingGroups, package: Callable[[], set[str]]
) -> None:
    real = package()
    assert len(real) > 100
    assert sorted(real - groups.names) == [], "a setting that is in no group"
    extra = groups.names - real - set(FORMER if groups in (SWIFT, SWIFT_RLHF) else ())
    assert sorted(extra) == [], "a setting that the package does not have"
    assert twice(groups) == []


@pytest.mark.parametrize(
    ("groups", "script", "former"),
    [
        (script_settings.QWEN, "qwen/finetune.py", script_settings.FORMER.names),
        (script_settings.LOFTQ, "peft_loftq/train.py", frozenset()),
    ],
)
def test_every_flag_of_a_script_is_in_one_group(
    groups: SettingGroups, script: str, former: frozenset[str]
) -> None:
    real = imported("hf") - SEQ2SEQ.names
    own = {name for name, _ in _fields(RECIPES / script)} & {*groups.names, *real}
    stated = {name for name, _ in _flags(RECIPES / script)}
    assert sorted((real | stated) - groups.names) == [], "a flag that is in no group"
    listed = {"lora_alpha", "lora_dropout", "lora_weight_path", "lora_bias", "cache_dir"}
    listed |= {"eval_data_path"}
    assert sorted(groups.names - real - own - former - listed) == []


def _flags(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the fields of a script's dataclasses of flags."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Arguments"):
            for one in node.body:
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                    yield one.target.id, _default(one.value)


def test_every_setting_that_torchtunes_recipes_read_is_in_one_group() -> None:
    real = known_settings.torchtune()
    assert len(real) > 35
    assert (sorted(real - TORCHTUNE.names), sorted(TORCHTUNE.names - real)) == ([], [])
    assert twice(TORCHTUNE) == []


@pytest.mark.parametrize("command", LITGPT)
def test_every_setting_of_a_litgpt_command_is_in_one_group(command: str) -> None:
    real, groups = known_settings.litgpt(command), LITGPT[command]
    assert len(real) > 30
    assert (sorted(real - groups.names), sorted(groups.names - real)) == ([], [])
    assert twice(groups) == []


def test_every_key_of_deepspeeds_zero_is_in_one_group() -> None:
    package = site_packages("llamafactory") / "deepspeed" / "runtime" / "zero"
    real = known_settings.deepspeed(package)
    listed = {key for key in DEEPSPEED.names if key.startswith("zero_optimization.")}
    assert len(real) > 50
    assert (sorted(real - listed), sorted(listed - real)) == ([], [])


def test_axolotls_keys_and_defaults() -> None:
    schemas = sorted((site_packages("schemas") / "axolotl" / "utils" / "schemas").glob("*.py"))
    text = "adapter: lora\nbatch_size: 2\neval_batch_size: 1\ndataloader_num_workers: 0\n"
    more = "lora_r: 1\ndataloader_pin_memory: true\nlow_cpu_mem_usage: false\n"
    keys = keys_of(axolotl.BINDINGS, text + more)
    assert len(keys) > 12
    assert_known(keys, literals(schemas))


def test_ms_swifts_keys_and_defaults() -> None:
    package = site_packages("schemas") / "swift"
    files = [*sorted(package.glob("arguments/**/*.py")), package / "trainers" / "arguments.py"]
    keys = keys_of(ms_swift.BINDINGS, "max_pixels: 1\ndataset_num_proc: 1\n")
    assert len(keys) > 18
    own = {key: value for key, value in keys.items() if key not in TRAINERS}
    assert keys.keys() >= TRAINERS
    assert_known(own, literals(files))


def test_ms_swift_has_the_deepspeed_configs_that_are_named() -> None:
    folder = site_packages("schemas") / "swift" / "config"
    there = {path.stem for path in folder.glob("zero*.json")}
    assert there == set(ms_swift._ZERO_NAMES)


def _fuses(function: ast.FunctionDef) -> bool:
    """Return whether a function's fused_linear_cross_entropy is on by default."""
    names = [argument.arg for argument in function.args.args]
    defaults = dict(zip(reversed(names), reversed(function.args.defaults), strict=False))
    found = defaults.get("fused_linear_cross_entropy")
    return isinstance(found, ast.Constant) and found.value is True


def test_the_models_with_a_fused_loss_are_those_that_liger_patches() -> None:
    source = site_packages("schemas") / "liger_kernel" / "transformers" / "monkey_patch.py"
    body = ast.parse(source.read_text()).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    (table,) = [
        node.value for node in body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        and ast.unparse(node.targets[0]) == "MODEL_TYPE_TO_APPLY_LIGER_FN"
    ]  # fmt: skip
    named = zip(table.keys, table.values, strict=True)
    fused = {ast.literal_eval(k) for k, v in named if k and _fuses(functions[ast.unparse(v)])}
    assert fused == liger.FUSED


def test_llamafactorys_own_list_of_models_for_liger_is_the_one_that_is_read() -> None:
    package = site_packages("llamafactory") / "llamafactory"
    source = (package / "model" / "model_utils" / "liger_kernel.py").read_text()
    compared = [n.comparators[0] for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Compare)]
    values = [
        ast.literal_eval(node) for node in compared if isinstance(node, ast.Constant | ast.List)
    ]
    types = {one for value in values for one in ([value] if isinstance(value, str) else value)}
    # Its function for glm4 patches the classes of glm4, which a model of type glm has not.
    assert (types - {"glm"}) & liger.FUSED == LIGER_MODELS


@pytest.mark.parametrize("name", ["lora_single_device", "qlora_single_device", "full"])
def test_torchtunes_configs_are_read_and_edited(name: str) -> None:
    path = site_packages("schemas") / "recipes" / "configs" / "llama3" / f"8B_{name}.yaml"
    document = Document.parse(Source(path=str(path), text=path.read_text()))
    read = torchtune.BINDINGS.read(Settings(file=document))
    values = yaml.safe_load(path.read_text())
    assert read["micro_batch"] == values["batch_size"]
    assert read["accumulation"] == values["gradient_accumulation_steps"]
    assert read["precision"] is Precision.BF16_TRUE
    assert read["loss_kernel"] is LossKernel.FUSED
    quantized = read["quantization"] is Quantization.NF4_DOUBLE
    assert quantized is (name == "qlora_single_device")
    assert read["checkpointing"] is values["enable_activation_checkpointing"]
