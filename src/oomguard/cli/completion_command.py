"""`oomguard completion`: print what completes its commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from oomguard.cli.output import echo

SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, options and files in SHELL."""
    root = ctx.find_root().command
    echo(SHELLS[shell](root, {}, "oomguard", "_OOMGUARD_COMPLETE").source())
