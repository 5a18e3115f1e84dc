"""The settings that each framework has, from its installed package."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

from environments import environment

IMPORTED = {
    "llamafactory": """
from llamafactory.hparams import parser
classes = parser._TRAIN_ARGS
""",
    "trl": """
from trl import ModelConfig, ScriptArguments, SFTConfig
from trl.scripts.utils import DatasetMixtureConfig
classes = (ModelConfig, ScriptArguments, SFTConfig, DatasetMixtureConfig)
""",
    "trl dpo": """
from trl import DPOConfig, ModelConfig, ScriptArguments
from trl.scripts.utils import DatasetMixtureConfig
classes = (ModelConfig, ScriptArguments, DPOConfig, DatasetMixtureConfig)
""",
    "trl reward": """
from trl import ModelConfig, RewardConfig, ScriptArguments
from trl.scripts.utils import DatasetMixtureConfig
classes = (ModelConfig, ScriptArguments, RewardConfig, DatasetMixtureConfig)
""",
    "trl kto": """
from trl import KTOConfig, ModelConfig, ScriptArguments
from trl.scripts.utils import DatasetMixtureConfig
classes = (ModelConfig, ScriptArguments, KTOConfig, DatasetMixtureConfig)
""",
    "trl grpo": """
from trl import GRPOConfig, ModelConfig
from trl.scripts.grpo import GRPOScriptArguments
from trl.scripts.utils import DatasetMixtureConfig
classes = (ModelConfig, GRPOScriptArguments, GRPOConfig, DatasetMixtureConfig)
""",
    "trl rloo": """
from trl import ModelConfig, RLOOConfig
from trl.scripts.rloo import RLOOScriptArguments
from trl.scripts.utils import DatasetMixtureConfig
classes = (ModelConfig, RLOOScriptArguments, RLOOConfig, DatasetMixtureConfig)
""",
    "hf": """
from transformers import Seq2SeqTrainingArguments
classes = (Seq2SeqTrainingArguments,)
""",
}
NAMES = (
    "import dataclasses, json\n"
    "print(json.dumps([f.name for c in classes for f in dataclasses.fields(c) if f.init]))"
)
#: What axolotl parses: its own settings and those of its plugins.
AXOLOTL = (
    *("AxolotlInputConfig", "CutCrossEntropyArgs", "DenseMixerArgs", "DiffusionArgs"),
    *("ExpertParallelArgs", "GrokfastArgs", "HatcheryArgs", "KDArgs", "KernelsArgs", "LigerArgs"),
    *("LLMCompressorArgs", "LMEvalArgs", "MoraArgs", "NemoGymArgs", "SpectrumArgs"),
    "SwanLabConfig",
)


def imported(name: str) -> set[str]:
    done = subprocess.run(
        [environment(name.split(maxsplit=1)[0]), "-W", "ignore", "-c", IMPORTED[name] + NAMES],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(json.loads(done.stdout.splitlines()[-1]))


def aliases(field: ast.AnnAssign) -> list[str]:
    """Return the other names of a pydantic field."""
    words = field.value.keywords if isinstance(field.value, ast.Call) else []
    return [
        word.value.value
        for word in words
        if word.arg == "alias" and isinstance(word.value, ast.Constant)
    ]


def inherited(package: str, *names: str) -> set[str]:
    """Return the fields of classes of a package, with those that they inherit there.

    It is read as source: what the package depends on needs a GPU or a compiler.
    """
    (site,) = environment("schemas").parents[1].glob("lib/python*/site-packages")
    trees = [ast.parse(path.read_text()) for path in sorted((site / package).rglob("*.py"))]
    classes = {
        node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)
    }

    def of_class(node: ast.ClassDef) -> set[str]:
        fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
        own = {one.target.id for one in fields if isinstance(one.target, ast.Name)}
        own |= {alias for one in fields for alias in aliases(one)}
        parents = [base.id for base in node.bases if isinstance(base, ast.Name)]
        bases = [classes[base] for base in parents if base in classes]
        return own.union(*(of_class(base) for base in bases))

    return set().union(*(of_class(classes[name]) for name in names))


def deepspeed(package: Path) -> set[str]:
    """Return the keys of `zero_optimization`, by the names that a config has for them."""
    trees = [ast.parse((package / name).read_text()) for name in ("config.py", "offload_config.py")]
    classes = {node.name: node for tree in trees for node in tree.body if hasattr(node, "name")}

    def of_class(name: str) -> set[str]:
        fields = [one for one in classes[name].body if isinstance(one, ast.AnnAssign)]
        return {(aliases(one) or [one.target.id])[0] for one in fields}

    blocks = {
        "offload_optimizer": "DeepSpeedZeroOffloadOptimizerConfig",
        "offload_param": "DeepSpeedZeroOffloadParamConfig",
    }
    own = of_class("DeepSpeedZeroConfig") - blocks.keys()
    inner = {f"{key}.{name}" for key, kind in blocks.items() for name in of_class(kind)}
    return {f"zero_optimization.{name}" for name in own | inner}


def litgpt(command: str) -> set[str]:
    """Return the parameters of a finetuning command, those of a dataclass one by one."""
    (site,) = environment("litgpt").parents[1].glob("lib/python*/site-packages")
    package = site / "litgpt"
    tree = ast.parse((package / "finetune" / f"{command.removeprefix('finetune_')}.py").read_text())
    (setup,) = (
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "setup"
    )
    groups = {
        node.name: [one.target.id for one in node.body if isinstance(one, ast.AnnAssign)]
        for node in ast.parse((package / "args.py").read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    found = set()
    for parameter in setup.args.args:
        nested = groups.get(ast.unparse(parameter.annotation))
        found |= {f"{parameter.arg}.{name}" for name in nested} if nested else {parameter.arg}
    return found


def torchtune() -> set[str]:
    """Return what the finetuning recipes read of their config."""
    (site,) = environment("torchtune").parents[1].glob("lib/python*/site-packages")
    files = [
        *(site / "recipes").glob("*_finetune_single_device.py"),
        *(site / "recipes").glob("*_finetune_distributed.py"),
        site / "recipes" / "qat_distributed.py",
    ]
    found = set()
    for path in files:
        if path.name.startswith("ppo"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Call) else ""
            if match := re.match(r"cfg\.(?!get\b)(\w+)$|cfg\.get\('(\w+)'", text):
                found.add(match[1] or match[2])
            elif text.startswith("cfg.get(PROFILER_KEY"):
                found.add("profiler")
    return found
