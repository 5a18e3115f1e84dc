"""`oomguard mcp`: offer plan, explain, launch and show to a coding agent, over stdin and stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from oomguard import __version__
from oomguard.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from mcp.server import MCPServer

_PACKAGE = "oomguard[mcp]"
_INSTRUCTIONS = (
    "Predict whether a fine-tuning job fits on a GPU (plan), say from its log why one died "
    "(explain), run one that lowers its memory use until it fits (launch, then show). Answers are "
    "those of oomguard's commands with --json. A verdict of `unsure` is not a yes: `unmodelled` "
    "and `notes` give the reason. Keep `allow` at same_math unless the user agrees to another "
    "loss, and report every change that a run made."
)
Train = Annotated[str | None, "Config file of the framework, or None with `command`."]
Command = Annotated[tuple[str, ...], "The training command, word by word, in place of a config."]
Folder = Annotated[str, "Folder that the job is started in; paths are relative to it."]
Answer = dict[str, Any]


@click.command("mcp")
def command() -> None:
    """Offer plan, explain, launch and show to a coding agent (Model Context Protocol, stdio).

    Add it to your agent as a server with the command `oomguard mcp`.
    """
    server().run()


def server() -> MCPServer[Any]:
    """Return the server with its four tools.

    Raises:
        UsageError: if the SDK is not installed.
    """
    try:
        from mcp.server import MCPServer  # noqa: PLC0415  an extra
    except ImportError as error:
        raise UsageError(
            "the Model Context Protocol's SDK is not installed",
            next_step=f"{sys.executable} -m pip install '{_PACKAGE}'",
        ) from error
    found: MCPServer[Any] = MCPServer("oomguard", instructions=_INSTRUCTIONS, version=__version__)
    for tool in (plan, explain, launch, show):
        found.add_tool(tool)
    return found


def plan(
    *,
    folder: Folder,
    train: Train = None,
    command: Command = (),
    gpu: Annotated[str | None, "GPU model such as 'RTX 3090', or all; None: those here."] = None,
    gpu_memory: Annotated[str | None, "Memory of one GPU, such as 24GiB, in place of gpu."] = None,
    gpus: Annotated[int | None, "Number of GPUs."] = None,
) -> Answer:
    """Predict the peak memory of a training job, whether it fits, and the first change that fits.

    Starts nothing and needs no GPU, weights or network.
    """
    options = {"--gpu": gpu, "--gpu-memory": gpu_memory, "--gpus": gpus}
    return _answer("plan", *_stated(options), *_job(train, command), folder=folder)


def explain(
    log: Annotated[str, "Log file of a failed job, or the folder with those of its ranks."],
    exit_code: Annotated[int | None, "Exit code of the job, if known."] = None,
) -> Answer:
    """Diagnose from its log why a training job failed: out of which memory, in which phase, why."""
    return _answer("explain", *_stated({"--exit-code": exit_code}), log)


def launch(
    *,
    folder: Folder,
    train: Train = None,
    command: Command = (),
    allow: Annotated[str, "Strongest change: same_math, same_recipe or new_recipe."] = "same_math",
    gpu_memory: Annotated[str | None, "Limit for each GPU, such as 24GiB."] = None,
    host_memory: Annotated[str | None, "Limit for host memory, such as 16GiB."] = None,
) -> Answer:
    """Start a training job that is relaunched with lower memory use until it fits.

    Returns at once: `show` says how far the run is. The run goes on without this server; SIGTERM to
    `pid` stops it with all its processes.
    """
    name = f"agent-{datetime.now(timezone.utc):%Y%m%d-%H%M%S-%f}"
    limits = {"--gpu-memory": gpu_memory, "--host-memory": host_memory}
    words = ("--json", "--name", name, "--allow", allow, *_stated(limits), *_job(train, command))
    log = Path(folder) / f"{name}.log"
    with log.open("xb") as output:
        started = subprocess.Popen(
            [*_OOMGUARD, "launch", *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return {"run": f"oomguard-runs/{name}", "pid": started.pid, "log": str(log)}


def show(
    *, folder: Folder, run: Annotated[str, "Run folder, its name, or a fit-report."]
) -> Answer:
    """Return how a run ended and what it changed, or how far it is."""
    return _answer("show", run, folder=folder)


_OOMGUARD = (sys.executable, "-m", "oomguard")


def _job(train: str | None, command: tuple[str, ...]) -> tuple[str, ...]:
    return (*((train,) if train else ()), *(("--", *command) if command else ()))


def _stated(options: Mapping[str, object]) -> tuple[str, ...]:
    stated = ((name, str(value)) for name, value in options.items() if value is not None)
    return tuple(word for pair in stated for word in pair)


def _answer(name: str, *words: str, folder: str | None = None) -> Answer:
    """Return what a command prints as JSON, an error included, with its exit code."""
    done = subprocess.run(
        [*_OOMGUARD, name, "--json", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found = json.loads(done.stdout)
    except json.JSONDecodeError:
        said = done.stderr.strip() or f"no answer, exit code {done.returncode}"
        found = {"error": {"what": said, "where": None, "next": ""}}
    is_known = done.returncode in {code.value for code in ExitCode}
    return {"exit_code": done.returncode if is_known else ExitCode.OWN_FAULT.value, **found}
