"""Programs on the Trainer that have a command and a config file of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from oomguard.adapters.contract import Claim
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.invocation import with_config
from oomguard.adapters.launchers import LauncherCommand
from oomguard.configfile.document import Source


class HFProgram(HFTrainer):
    """One such program: how its commands are recognized, and what starts its config file."""

    launch_of: Callable[[tuple[str, ...]], LauncherCommand | None]
    starts: tuple[str, ...]
    #: The words before the config's name.
    option: tuple[str, ...] = ()

    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        """Claim its command, and its module behind any launcher."""
        return Claim.OWN if type(self).launch_of(argv) else Claim.NO

    def command_for(
        self,
        source: Source,
        document: Mapping[str, object],
        command: tuple[str, ...],
    ) -> tuple[str, ...]:
        """Return the command that starts this file."""
        return with_config(command or self.starts, *self.option, source.path)
