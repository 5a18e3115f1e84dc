"""The architecture facts that oomguard carries, so that planning needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources

#: Endings of a name that say how a model was tuned, not how large it is.
_TUNED = re.compile(
    r"[-_](hf|chat|instruct|it|base|pt|coder|math|tele|bnb|4bit|8bit|int4|int8|fp16|gptq|awq|unsloth"
    r"|intermediate|step|\d+k|1431k|3t|v\d+(\.\d+)*|2[45]\d\d|preview|thinking)(?=[-_]|$)"
)
_KEPT = re.compile(r"mistral|mixtral|phi-3")  # there the version or the context is another shape
_SKIPPED = ("litgpt",)


@cache
def families() -> Mapping[str, Mapping[str, object]]:
    """Read every file of facts: family -> {source, models}."""
    folder = resources.files("oomguard.catalogue") / "models"
    return {
        path.name.removesuffix(".json"): json.loads(path.read_text(encoding="utf-8"))
        for path in folder.iterdir()
        if path.name.endswith(".json")
    }


def transformers_config(model: str) -> tuple[Mapping[str, object], str] | None:
    """Find a model in transformers' words, by hub id or by the name of its folder, with a source.

    An exact name comes first, then the same name without what only says how it was tuned.
    """
    rows = list(_rows())
    for key in (_exact, _bare):
        wanted = key(model)
        found = next(
            ((config, source) for name, config, source in rows if key(name) == wanted), None
        )
        if found is not None:
            return found
    return None


def litgpt_config(checkpoint: str) -> tuple[Mapping[str, object], str] | None:
    """Find a model in LitGPT's words, by the folder that `litgpt download` makes."""
    family = families()["litgpt"]
    models = family["models"]
    wanted = _exact(checkpoint)
    if not isinstance(models, dict):
        return None
    for name, config in models.items():
        if wanted in (_exact(name), _exact(str(config.get("hub", "")))):
            return {"name": name, **config}, str(family["source"])
    return None


def known() -> list[str]:
    """List the models that are carried, by hub id."""
    return [name for name, _, _ in _rows()]


def _rows() -> Iterator[tuple[str, Mapping[str, object], str]]:
    for family, facts in sorted(families().items()):
        models = facts["models"]
        if family not in _SKIPPED and isinstance(models, dict):
            for name, config in models.items():
                yield name, config, str(facts["source"])


def _exact(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1].lower()


def _bare(name: str) -> str:
    """Return a name without its tuning and without differences in spelling."""
    text = _exact(name).replace("meta-llama", "llama").replace("codellama", "code_llama")
    if _KEPT.search(text):
        stripped = re.sub(r"[-_](instruct|chat|hf|it)(?=[-_]|$)", "", text)
    else:
        stripped = _TUNED.sub("", text)
    return stripped.replace("_", "").replace("-", "")
