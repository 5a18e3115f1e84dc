"""Which of TRL's commands a config is for, by the settings that it states.

Source: trl 1.16.0, trainer/*_config.py, scripts/*.py; trl 0.x for the former settings.
"""

from __future__ import annotations

from collections.abc import Mapping

from oomguard.adapters.settings.trl_settings import TRL
from oomguard.configfile.document import Source
from oomguard.errors import ConfigError, Where
from oomguard.job.unmodelled import TrainingMethod

#: The commands that are read.
COMMANDS = {
    "sft": TrainingMethod.SFT,
    "dpo": TrainingMethod.DPO,
    "reward": TrainingMethod.REWARD,
    "kto": TrainingMethod.KTO,
    "grpo": TrainingMethod.GRPO,
    "rloo": TrainingMethod.RLOO,
}
#: Settings of earlier versions, which still say whose config it is.
_FORMER = {
    "dpo": ("max_prompt_length", "ref_model_init_kwargs"),
    "kto": ("max_prompt_length", "ref_model_init_kwargs"),
    "grpo": ("max_prompt_length", "ref_model_init_kwargs"),
    "rloo": ("max_prompt_length", "ref_model_init_kwargs"),
}
_NAMES = {name: TRL[kind].names.union(_FORMER.get(name, ())) for name, kind in COMMANDS.items()}


def command_of(source: Source, document: Mapping[str, object]) -> str:
    """Return the command that has the config's settings: `sft`, unless one shows another.

    Raises:
        ConfigError: for a config of several commands, or of one that cannot be run.
    """
    known = [key for key in document if any(key in names for names in _NAMES.values())]
    foreign = [key for key in known if key not in _NAMES["sft"]]
    if not foreign:
        return "sft"
    found = _having(foreign)
    whole = _having(known)
    (only, *others) = whole or found or [""]
    if only and not others:
        return only
    raise _unclear(source, foreign, whole or found)


def _having(keys: list[str]) -> list[str]:
    """Return the commands that have all of these settings."""
    return [name for name, names in _NAMES.items() if names.issuperset(keys)]


def _unclear(source: Source, keys: list[str], commands: list[str]) -> ConfigError:
    where = Where(file=source.path, key=keys[0])
    if not commands:
        return ConfigError(
            f"no command of TRL has all of {', '.join(keys)}",
            where=where,
            next_step="Remove those of other commands, or pass the command: "
            f"oomguard launch -- trl COMMAND --config {source.path}",
        )
    return ConfigError(
        f"{keys[0]} is a setting of trl {' and '.join(commands)}, not of trl sft",
        where=where,
        next_step=f"Pass the command: oomguard launch -- trl {commands[0]} --config {source.path}",
    )
