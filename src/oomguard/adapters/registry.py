"""All adapters, and which of them a config or a command belongs to."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from oomguard.adapters import launchers, other_frameworks
from oomguard.adapters.axolotl import Axolotl
from oomguard.adapters.contract import Adapter, Claim
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.litgpt import LitGPT
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.adapters.ms_swift import MsSwift
from oomguard.adapters.other_frameworks import OtherFramework
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
        FrameworkError: if none or several match.
    """
    if command:
        # Some scripts are recognized by their flags alone: add those that a flat config becomes.
        plain = {key: v for key, v in document.items() if not isinstance(v, dict | list)}
        flags = tuple(word for key, v in plain.items() for word in (f"--{key}", str(v)))
        return detect_command(command, flags)
    where = Where(file=file) if file else None
    other = other_frameworks.owner_of(document)
    if other is not None:
        raise _unsupported(other, where)
    claims = [(adapter.recognizes(document), adapter) for adapter in ADAPTERS]
    return _strongest(claims, where)


def detect_command(argv: tuple[str, ...], flat: tuple[str, ...] = ()) -> Adapter:
    """Return the one adapter whose framework a command line starts.

    `flat` are the flags that a flat config becomes, for the scripts that take it as such.

    Raises:
        FrameworkError: if none or several match, or the framework has no adapter.
    """
    other = other_frameworks.started_by(argv)
    if other is not None:
        raise _unsupported(other, Where(key=" ".join(argv[:2])))
    launch = launchers.parse(argv)
    package = launch.program.split(".")[0] if launch and launch.is_module else ""
    owners = [adapter for adapter in ADAPTERS if package in adapter.python_packages]
    claims = [
        (adapter.recognizes_command((*argv, *(flat if adapter.takes_flat_files else ()))), adapter)
        for adapter in owners or ADAPTERS
    ]
    program = posixpath.basename(argv[0]) if argv else ""
    framework = next((adapter for adapter in ADAPTERS if program in adapter.programs), None)
    if framework is not None and all(claim is Claim.NO for claim, _ in claims):
        raise FrameworkError(
            f"oomguard cannot run this command of {framework.title}",
            where=Where(key=" ".join(argv[:2])),
            next_step="See the README for the commands that are supported.",
        )
    return _strongest(claims, Where(key=" ".join(argv[:2])))


def _unsupported(other: OtherFramework, where: Where | None) -> FrameworkError:
    titles = ", ".join(adapter.title for adapter in ADAPTERS)
    return FrameworkError(
        f"this is a job of {other.title}, which oomguard does not support",
        where=where,
        next_step=f"Supported are {titles}. Use --framework if it is one of these after all.",
    )


def _strongest(claims: Sequence[tuple[Claim, Adapter]], where: Where | None) -> Adapter:
    best = max(claim for claim, _ in claims)
    found = [adapter for claim, adapter in claims if claim is best and best is not Claim.NO]
    if len(found) == 1:
        return found[0]
    candidates = found or ADAPTERS
    titles = ", ".join(adapter.title for adapter in candidates)
    names = ", ".join(adapter.name for adapter in candidates)
    raise FrameworkError(
        f"more than one framework matches: {titles}"
        if found
        else f"not recognised as a training job of {titles}",
        where=where,
        next_step=f"{'Choose one' if found else 'If it is, choose it'} with --framework: {names}.",
    )
