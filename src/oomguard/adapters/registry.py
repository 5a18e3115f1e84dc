"""All adapters, and which of them a config or a command belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oomguard.adapters.axolotl import Axolotl
from oomguard.adapters.contract import Adapter
from oomguard.adapters.hf_trainer import HFTrainer
from oomguard.adapters.litgpt import LitGPT
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.adapters.ms_swift import MsSwift
from oomguard.adapters.peft_loftq import PeftLoftq
from oomguard.adapters.qwen import Qwen
from oomguard.adapters.torchtune import Torchtune
from oomguard.adapters.trl import Trl
from oomguard.errors import FrameworkError, Where, did_you_mean

ADAPTERS: tuple[Adapter, ...] = (
    LlamaFactory(),
    LitGPT(),
    HFTrainer(),
    Trl(),
    Qwen(),
    PeftLoftq(),
    Axolotl(),
    Torchtune(),
    MsSwift(),
)

_CHOOSE = "Choose one with --framework: "


def adapter_named(name: str) -> Adapter:
    """Return the adapter that `--framework NAME` asks for.

    Raises:
        FrameworkError: if no adapter has that name.
    """
    found = next((adapter for adapter in ADAPTERS if adapter.name == name), None)
    if found is None:
        known = [adapter.name for adapter in ADAPTERS]
        guess = did_you_mean(name, known)
        raise FrameworkError(
            f"no framework is called {name!r}",
            next_step=f"{guess} Known are {', '.join(known)}.".strip(),
        )
    return found


def detect(
    document: Mapping[str, object], command: tuple[str, ...] = (), *, file: str | None = None
) -> Adapter:
    """Return the one adapter that a config belongs to; its own command decides, where it has one.

    Raises:
        FrameworkError: if none or several can be meant.
    """
    if command:
        return detect_command((*command, *_as_flags(document)))
    return _only(
        [a for a in ADAPTERS if a.recognizes(document)], Where(file=file) if file else None
    )


def detect_command(argv: tuple[str, ...]) -> Adapter:
    """Return the one adapter whose framework a command line starts.

    Raises:
        FrameworkError: if none or several can be meant.
    """
    where = Where(key=" ".join(argv[:2]))
    return _only([a for a in ADAPTERS if a.recognizes_command(argv)], where)


def _as_flags(document: Mapping[str, object]) -> tuple[str, ...]:
    """Return what a script would see of a flat config: some are told by their flags alone."""
    plain = {key: value for key, value in document.items() if not isinstance(value, dict | list)}
    return tuple(word for key, value in plain.items() for word in (f"--{key}", str(value)))


def _only(found: Sequence[Adapter], where: Where | None) -> Adapter:
    if len(found) == 1:
        return found[0]
    candidates = found or ADAPTERS
    what = "more than one framework can be meant" if found else "no known framework is recognised"
    raise FrameworkError(
        f"{what}: {', '.join(adapter.title for adapter in candidates)}",
        where=where,
        next_step=_CHOOSE + ", ".join(adapter.name for adapter in candidates) + ".",
    )
