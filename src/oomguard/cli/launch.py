"""`oomguard launch`: bring a job from out of memory to trained."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from oomguard import __version__
from oomguard.cli.account import COSTS, Account, show_change
from oomguard.cli.output import print_json
from oomguard.cli.request import Asked, prepare
from oomguard.errors import ExitCode, UsageError
from oomguard.record import RunRecord, Status
from oomguard.report import FitReport
from oomguard.supervise.loop import Audience, Supervisor
from oomguard.supervise.outcome import write_outcome

CODES = {
    Status.FIT: ExitCode.TRAINED,
    Status.FAILED: ExitCode.JOB_FAILED,
    Status.EXHAUSTED: ExitCode.EXHAUSTED,
    Status.INTERRUPTED: ExitCode.INTERRUPTED,
}


class WithCommand(click.Command):
    """A command whose words after `--` are another program's command line, kept as they are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put what stands after `--` aside, then parse the rest."""
        own = args[: args.index("--")] if "--" in args else args
        ctx.meta["oomguard.command"] = tuple(args[len(own) + 1 :])
        return super().parse_args(ctx, own)
