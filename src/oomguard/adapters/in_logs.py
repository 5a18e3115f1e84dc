"""Which framework printed a log: by the files in its frames, and by the commands it echoes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from oomguard.adapters.contract import Adapter, Claim
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.registry import ADAPTERS, adapter_named
from oomguard.adapters.trl import Trl

_PACKAGES = {package: adapter for adapter in ADAPTERS for package in adapter.python_packages}
_FRAME = re.compile(rf"[/\\]({'|'.join(_PACKAGES)})[/\\](?:\w+[/\\])*\w+\.py\b")
_PROGRAMS = [program for adapter in ADAPTERS for program in adapter.programs]
_COMMAND = re.compile(rf"(?:^|[\s/'\"])((?:{'|'.join(_PROGRAMS)}) [^\n\r]{{1,400}})", re.MULTILINE)
#: What only a script's own Trainer leaves; TRL's trainers are used by scripts of all kinds.
_TRAINER = re.compile(
    r"[/\\](?:transformers[/\\](?:trainer|hf_argparser)|trl[/\\]trainer[/\\]\w+)\.py\b"
)
_COMMANDS_OF_TRL = re.compile(r"[/\\]trl[/\\](?:scripts|cli)[/\\]")


def framework_in_log(text: str) -> Adapter | None:
    """Return the framework whose job printed a text; None where nothing in it is one's own."""
    found = next(_commanded(text), None)
    if found is not None:
        return found
    packages = {match[1] for match in _FRAME.finditer(text)}
    owners = [_PACKAGES[package] for package in _PACKAGES if package in packages]
    own = next((owner for owner in owners if owner.name != Trl.name), None)
    if own is not None:
        return own
    if _COMMANDS_OF_TRL.search(text):
        return adapter_named(Trl.name)
    return adapter_named(HFTrainer.name) if _TRAINER.search(text) else None


def _commanded(text: str) -> Iterator[Adapter]:
    """Yield the frameworks whose training commands stand in a text."""
    for match in _COMMAND.finditer(text):
        argv = tuple(match[1].strip("'\"`").split())
        yield from (a for a in ADAPTERS if a.programs and a.recognizes_command(argv) is Claim.OWN)
