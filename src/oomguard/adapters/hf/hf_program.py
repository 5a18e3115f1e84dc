"""Programs on the Trainer that have a command and a config file of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from oomguard.adapters.hf_trainer import HFTrainer
from oomguard.adapters.invocation import with_config
from oomguard.adapters.launchers import LauncherCommand
from oomguard.configfile.document import Source


class HFProgram(HFTrainer):
    """One such program: how its configs and its commands are told, and what starts it by hand."""

    is_config: Callable[[Mapping[str, object]], bool]
    launch_of: Callable[[tuple[str, ...]], LauncherCommand | None]
    starts: tuple[str, ...]
    #: The words before the config's name.
    option: tuple[str, ...] = ()

    def recognizes(self, document: Mapping[str, object]) -> bool:
        """Take the configs that the program's own keys tell."""
        return type(self).is_config(document)

    def recognizes_command(self, argv: tuple[str, ...]) -> bool:
        """Take its command, and its module behind any launcher."""
        return type(self).launch_of(argv) is not None

    def command_for(
        self,
        source: Source,
        document: Mapping[str, object],  # noqa: ARG002  part of the protocol
        command: tuple[str, ...],
    ) -> tuple[str, ...]:
        """Return the command that starts this file."""
        return with_config(command or self.starts, *self.option, source.path)
