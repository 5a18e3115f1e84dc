"""What `launch` and `plan` take alike: one job, as a config file or as a command after --."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from oomguard.errors import UsageError
from oomguard.ladder.strategy import Fidelity
from oomguard.units import parse_size

F = TypeVar("F", bound=Callable[..., object])
COMMAND = "oomguard.job.command"


class WithCommand(click.Command):
    """A command whose words after `--` are another program's command line, kept as they are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put what stands after `--` aside, then parse the rest."""
        own = args[: args.index("--")] if "--" in args else args
        rest = tuple(args[len(own) + 1 :])
        if "--" in args and not rest:
            raise UsageError(
                "no command stands after --",
                next_step=f"For example: {ctx.command_path} -- llamafactory-cli train train.yaml",
            )
        ctx.meta[COMMAND] = rest
        return super().parse_args(ctx, own)

    def collect_usage_pieces(self, _ctx: click.Context) -> list[str]:
        """Show both entrances."""
        return ["[OPTIONS]", "TRAIN.YAML | -- COMMAND..."]


class Size(click.ParamType[int]):
    """A size such as 24GiB, in bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Parse a size; fail with a usage error if it is not one."""
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


GRACE_S = 30.0
#: Of `launch` and `resume`.
grace = click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Grace period to save a checkpoint after SIGTERM or SIGUSR1 (default: 30).",
)

_SHARED = (
    click.argument("train", required=False, type=click.Path(path_type=Path)),
    click.option(
        "--framework", metavar="NAME", help="Framework, if the config or command does not show it."
    ),
    click.option("--python", metavar="PATH", help="Python the framework is installed in."),
    click.option(
        "--ladder",
        metavar="IDS",
        help="classic, or a list of ids (default: all strategies).",
    ),
    click.option(
        "--allow",
        type=click.Choice([f.value for f in Fidelity]),
        help="Strongest change allowed (default: new_recipe).",
    ),
    click.option("--strategies", metavar="DIR", help="Folder with additional strategy files."),
)


def shared(function: F) -> F:
    """Add the options that `launch` and `plan` share."""
    for option in reversed(_SHARED):
        function = option(function)
    return function
