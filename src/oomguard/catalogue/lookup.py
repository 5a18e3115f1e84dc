"""Find the config of the model that a job names: its own folder first, the network last."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from oomguard import present
from oomguard.catalogue import shipped
from oomguard.errors import ConfigError, Where, did_you_mean
from oomguard.estimate.architecture import Architecture, from_config, from_gpt_config
from oomguard.job.memory_settings import Family

HUB = "https://huggingface.co"
_TIMEOUT_S = 10
_MOST_BYTES = 1 << 20
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's config in the format of `family`, and where it was found.

    `taken_for` is the model of the catalogue that a name of another spelling was taken for;
    `is_of_the_base` says that the config is not the checkpoint's own but the catalogue's, which
    says nothing of how somebody stored it; `parameters` is the model's true count, where its config
    alone does not tell it.
    """

    name: str
    family: Family
    config: Mapping[str, object]
    source: str
    taken_for: str | None = None
    is_of_the_base: bool = False
    parameters: int | None = None

    @property
    def type(self) -> str | None:
        """Return the `model_type` of transformers' config, None in other formats."""
        stated = self.config.get("model_type")
        return stated if isinstance(stated, str) else None

    @property
    def architecture(self) -> Architecture:
        """Read its shape."""
        if self.family is Family.LITGPT:
            return from_gpt_config(self.config)
        return from_config(self.config, self.parameters)


def find_model(
    name: str,
    family: Family,
    *,
    cwd: Path,
    environment: Mapping[str, str] = os.environ,
    ask_framework: Callable[[str], Mapping[str, object] | None] = lambda _: None,
) -> Model:
    """Find a model's config; its weights are never needed.

    Searched in this order: its folder; the local hub cache; oomguard's catalogue; the framework's
    own names (`ask_framework`); the hub, unless it is offline.

    Raises:
        ConfigError: if none of them has it.
    """
    places: tuple[Callable[[], Model | None], ...] = (
        lambda: _folder(name, cwd),
        lambda: _cache(name, environment),
        lambda: _shipped(name, family),
        lambda: _asked(name, family, ask_framework),
        lambda: _hub(name, environment),
    )
    found = next((answer for answer in (place() for place in places) if answer), None)
    if found is None:
        raise _unknown(name, cwd)
    return found


def find_tokenizer(
    name: str, *, cwd: Path, environment: Mapping[str, str] = os.environ
) -> Path | None:
    """Return the file of a model's tokenizer, in its folder or in the local hub cache."""
    own = cwd / present.expanded(name) / "tokenizer.json"
    if present.is_file(own):
        return own
    return next(iter(reversed(_cached(name, "tokenizer.json", environment))), None)


def _folder(name: str, cwd: Path) -> Model | None:
    path = cwd / present.expanded(name)
    for file, family in (("model_config.yaml", Family.LITGPT), ("config.json", Family.HF)):
        text = _read(path / file)
        if text is not None:
            config = _parse(text, path / file)
            return Model(name=name, family=family, config=config, source=str(path / file))
    return None


def _cache(name: str, environment: Mapping[str, str]) -> Model | None:
    files = _cached(name, "config.json", environment)
    text = _read(files[-1]) if files else None
    if text is None:
        return None
    config = _parse(text, files[-1])
    return Model(name=name, family=Family.HF, config=config, source=str(files[-1]))


def _cached(name: str, file: str, environment: Mapping[str, str]) -> list[Path]:
    """List the snapshots of a file in the local hub cache."""
    home = Path(environment.get("HF_HOME") or present.expanded("~/.cache/huggingface"))
    hub = Path(environment.get("HF_HUB_CACHE") or home / "hub")
    folder = hub / f"models--{name.replace('/', '--')}" / "snapshots"
    return sorted(folder.glob(f"*/{file}")) if present.is_folder(folder) else []


def _asked(
    name: str, family: Family, ask: Callable[[str], Mapping[str, object] | None]
) -> Model | None:
    config = ask(name) if family is Family.LITGPT else None
    if not config:
        return None
    return Model(name=name, family=family, config=config, source="litgpt's own list of configs")


def _shipped(name: str, family: Family) -> Model | None:
    own = shipped.litgpt_config(name) if family is Family.LITGPT else None
    if own is not None:
        return Model(name=name, family=family, config=own[0], source=own[1])
    found = shipped.transformers_config(name)
    if found is None:
        return None
    taken_for = found.name if shipped.is_loose(name, found) else None
    return Model(
        name=name,
        family=Family.HF,
        config=found.config,
        source=found.source,
        taken_for=taken_for,
        is_of_the_base=True,
        parameters=found.parameters,
    )


def _hub(name: str, environment: Mapping[str, str]) -> Model | None:
    """Return the hub's config.json; None if the hub is offline, unreachable or lacks the model."""
    off = any(environment.get(key, "").lower() in ("1", "true", "yes", "on") for key in _OFFLINE)
    if off or name.count("/") != 1 or name.startswith((".", "/")):
        return None
    base = environment.get("HF_ENDPOINT", HUB).rstrip("/")
    url = f"{base}/{name}/resolve/main/config.json"
    if not url.startswith(("https://", "http://")):
        return None
    headers = {"User-Agent": "oomguard"}
    token = environment.get("HF_TOKEN")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  checked above
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            document = json.loads(answer.read(_MOST_BYTES))
    except (OSError, ValueError, urllib.error.URLError):
        return None
    if not isinstance(document, dict):
        return None
    return Model(name=name, family=Family.HF, config=document, source=url)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _parse(text: str, path: Path) -> Mapping[str, object]:
    try:
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            "the model's config cannot be read", where=Where(file=str(path)), next_step=str(error)
        ) from error
    if not isinstance(document, dict):
        raise ConfigError("the model's config is not a mapping", where=Where(file=str(path)))
    return document


def _unknown(name: str, cwd: Path) -> ConfigError:
    family = shipped.family(name)
    relatives = [one.name for one in shipped.carried() if shipped.family(one.name) == family]
    guess = did_you_mean(name.rsplit("/", 1)[-1], [one.rsplit("/", 1)[-1] for one in relatives])
    return ConfigError(
        f"unknown model {name!r}: no config.json is in a folder of that name under {cwd}, "
        "and it is not in oomguard's catalogue (`oomguard models` lists it)",
        next_step=(
            f"{guess} Or put the model's config.json (no weights) into a folder and give that "
            "folder as the model."
        ).strip(),
    )
