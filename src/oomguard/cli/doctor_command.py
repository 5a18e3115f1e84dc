"""`oomguard doctor`: check what this machine and the job's Python allow."""

from __future__ import annotations

import click

from oomguard.cli.checkup import Health, look_at
from oomguard.cli.options import as_json
from oomguard.cli.output import echo, print_json, secho
from oomguard.machine.interpreter import find, working_folder

_COLOURS = {Health.OK: "green", Health.OPTIONAL: "yellow", Health.PROBLEM: "red"}


@click.command("doctor")
@click.option(
    "--python",
    metavar="PATH",
    help="Python interpreter of the environment that the framework is installed in.",
)
@as_json
def command(python: str | None, as_json: bool) -> None:
    """Check what this machine and the job's Python allow, one line each.

    Nothing is trained and nothing is changed.
    """
    findings = look_at(find(("python3",), cwd=working_folder(), python=python))
    if as_json:
        print_json({"findings": list(findings)})
        return
    for one in findings:
        secho(f"{one.state.value:<9}", fg=_COLOURS[one.state], nl=False)
        echo(f"{one.about:<13} {one.text}")
        if one.next_step:
            echo(f"{'':<23}{one.next_step}")
