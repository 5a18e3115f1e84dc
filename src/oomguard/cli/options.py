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
        """Read it."""
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
    help="What the job gets to save a checkpoint when oomguard is told to stop (30).",
)

_SHARED = (
    click.argument("train", required=False, type=click.Path(path_type=Path)),
    click.option("--framework", metavar="NAME", help="Which framework, where the file leaves it."),
    click.option("--python", metavar="PATH", help="The Python that has the framework."),
    click.option("--ladder", metavar="IDS", help="classic, or ids of strategies between commas."),
    click.option(
        "--allow", type=click.Choice([f.value for f in Fidelity]), help="The dearest cost."
    ),
    click.option("--strategies", metavar="DIR", help="A folder of strategies of your own."),
)


def shared(function: F) -> F:
    """Give a command the options that name and bound a job."""
    for option in reversed(_SHARED):
        function = option(function)
    return function
