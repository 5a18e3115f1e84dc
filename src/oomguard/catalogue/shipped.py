"""The architecture facts that oomguard carries, so that planning needs no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

from oomguard.estimate.architecture import Architecture, from_config

#: What a maker appends to a name without another shape.
_VARIANT = re.compile(r"[-_](hf|chat|instruct|it|base|pt|pretrained|deduped)(?=[-_]|$)")
#: Endings of a name that say how somebody tuned a model, not how large it is.
_TUNED = re.compile(
    r"[-_](coder|math|tele|preview|thinking|reasoning|reward|rm|prm|sft|dpo|kto|grpo|rl|merged"
    r"|unsloth|embedding|reranker|safeguard|linearized|tldr|intermediate|step|1431k|3t)(?=[-_]|$)"
)
#: Endings of a name that say in what format a copy is stored.
_STORED = re.compile(
    r"[-_](bnb|gptq|awq|hqq|gguf|4bit|8bit|int4|int8|nf4|fp8|fp16|bf16|nvfp4|mxfp4|prequantized)"
    r"(?=[-_]|$)"
)
#: Versions and context lengths: another one may be another shape.
_VERSION = re.compile(r"[-_](\d+k|v\d+(?:\.\d+)*|2[4-6]\d\d)(?=[-_]|$)")
#: Makers in the way that caches and copies write them, where a hub id has a slash.
_MAKER = re.compile(r"^(?:[\w.-]+?--|(?:eleutherai|meta-llama|mistralai|tiiuae)_)")
_SKIPPED = ("litgpt",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A model of the catalogue: its config in transformers' format, and where that is from.

    `parameters` were counted in the library's own class, where the config alone does not tell them.
    """

    name: str
    config: Mapping[str, object]
    source: str
    parameters: int | None = None

    @property
    def architecture(self) -> Architecture:
        """Read its shape."""
        return from_config(self.config, self.parameters)


@cache
def families() -> Mapping[str, Mapping[str, object]]:
    """Read every file of facts: family -> {source, models}."""
    folder = resources.files("oomguard.catalogue") / "models"
    return {
        path.name.removesuffix(".json"): json.loads(path.read_text(encoding="utf-8"))
        for path in folder.iterdir()
        if path.name.endswith(".json")
    }


@cache
def carried() -> tuple[Shipped, ...]:
    """Return the models that are carried in transformers' format, by family and size."""
    return tuple(
        Shipped(
            name=name,
            config=config,
            source=str(facts["source"]),
            parameters=_counts(facts).get(name),
        )
        for family, facts in sorted(families().items())
        if family not in _SKIPPED and isinstance(facts["models"], dict)
        for name, config in facts["models"].items()
    )


def _counts(facts: Mapping[str, object]) -> Mapping[str, int]:
    counts = facts.get("parameters")
    return counts if isinstance(counts, dict) else {}


def transformers_config(model: str) -> Shipped | None:
    """Find a model by hub id or by the name of its folder.

    An exact name comes first, then the same name without what only says how it was tuned. A
    version in the catalogue's name has to be in the given one: v0.2 is not taken for v0.3.
    """
    exact = next((one for one in carried() if _name(one.name) == _name(model)), None)
    if exact is not None:
        return exact
    given = _versions(model)
    alike = [
        one for one in carried() if _bare(one.name) == _bare(model) and _versions(one.name) <= given
    ]
    found = max(alike, key=lambda one: len(_versions(one.name)), default=None)
    return _as_stored(found, model) if found is not None else None


def _as_stored(found: Shipped, model: str) -> Shipped:
    """Return a model without the format of its own weights, where a copy's name has another."""
    if not _STORED.search(_name(model)):
        return found
    config = {key: found.config[key] for key in found.config if key != "quantization_config"}
    return replace(found, config=config)


def is_loose(model: str, found: Shipped) -> bool:
    """Return whether more than a maker's own ending tells a name from the one it was taken for."""
    return _as_made(model) != _as_made(found.name)


def family(model: str) -> str:
    """Return the letters that a model's name begins with: `qwen` for Qwen2.5-7B-Instruct."""
    begins = re.match(r"[a-z]+", _bare(model))
    return begins.group() if begins else ""


def litgpt_config(checkpoint: str) -> tuple[Mapping[str, object], str] | None:
    """Find a model in LitGPT's format, by the folder that `litgpt download` makes."""
    facts = families()["litgpt"]
    models = facts["models"]
    wanted = _name(checkpoint)
    if not isinstance(models, dict):
        return None
    for name, config in models.items():
        if wanted in (_name(name), _name(str(config.get("hub", "")))):
            return {"name": name, **config}, str(facts["source"])
    return None


def _name(model: str) -> str:
    """Return a name without its maker, whom a copy's name may still have: EleutherAI_pythia-1b."""
    name = model.rstrip("/").rsplit("/", 1)[-1].lower().removeprefix("models--")
    return _MAKER.sub("", name.replace("__", "_"))


def _as_made(model: str) -> str:
    """Return a name without its maker's variants of one shape; Llama 3.1 lost its prefix later."""
    return _VARIANT.sub("", _name(model)).removeprefix("meta-")


def _versions(model: str) -> set[str]:
    return set(_VERSION.findall(_name(model)))


def _bare(model: str) -> str:
    """Return a name without its tuning, its version and differences in spelling."""
    text = _name(model).replace("meta-llama", "llama").replace("codellama", "code_llama")
    for ending in (_VARIANT, _TUNED, _STORED, _VERSION):
        text = ending.sub("", text)
    return text.replace("_", "").replace("-", "")
