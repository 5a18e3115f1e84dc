"""Dump the settings that each framework has, from its installed package.

python tests/frameworks/known_settings.py > src/oomguard/adapters/known_settings.py
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
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
    "hf": """
from transformers import Seq2SeqTrainingArguments
classes = (Seq2SeqTrainingArguments,)
""",
}
NAMES = (
    "import dataclasses, json\n"
    "print(json.dumps([f.name for c in classes for f in dataclasses.fields(c) if f.init]))"
)
#: Packages that are read as source: what they depend on needs a GPU or a compiler.
READ = {
    "axolotl": ("utils/schemas/*.py", "integrations/*/args.py"),
}
HEAD = '''"""The settings of each framework, dumped from its package; do not edit.

Made by tests/frameworks/known_settings.py, in the pinned environments of the framework tests.
"""

from __future__ import annotations
'''


def imported(name: str) -> set[str]:
    done = subprocess.run(
        [environment(name.split(maxsplit=1)[0]), "-W", "ignore", "-c", IMPORTED[name] + NAMES],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(json.loads(done.stdout.splitlines()[-1]))


def read(package: str) -> set[str]:
    (site,) = environment("schemas").parents[1].glob("lib/python*/site-packages")
    files = [path for pattern in READ[package] for path in sorted((site / package).glob(pattern))]
    trees = [ast.parse(Path(path).read_text()) for path in files]
    return {
        node.target.id
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def inherited(package: str, name: str) -> set[str]:
    """Return the fields of a class of a package, with those that it inherits there."""
    (site,) = environment("schemas").parents[1].glob("lib/python*/site-packages")
    trees = [ast.parse(path.read_text()) for path in sorted((site / package).rglob("*.py"))]
    classes = {
        node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)
    }

    def of_class(node: ast.ClassDef) -> set[str]:
        own = {
            one.target.id
            for one in node.body
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        }
        names = [base.id for base in node.bases if isinstance(base, ast.Name)]
        bases = [classes[base] for base in names if base in classes]
        return own.union(*(of_class(base) for base in bases))

    return of_class(classes[name])


def known() -> dict[str, set[str]]:
    return {
        "AXOLOTL": read("axolotl"),
    }


def module() -> str:
    parts = [HEAD]
    for name, keys in known().items():
        lines = textwrap.wrap(" ".join(sorted(keys)), 95)
        body = "\n".join(f"    {line}" for line in lines)
        parts.append(f'{name} = frozenset(\n    """\n{body}\n    """.split()\n)\n')
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(module())
