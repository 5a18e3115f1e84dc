"""The `oomguard` command: dispatch to a subcommand, turn errors into messages and exit codes."""

from __future__ import annotations

import importlib
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from oomguard import __version__
from oomguard.cli.help_pages import epilog_of
from oomguard.cli.streams import discard, is_of_output, open_missing
from oomguard.errors import ExitCode, OomguardError, UsageError, did_you_mean

#: Subcommands with their line in `--help`, which imports none of them.
COMMANDS = {
    "launch": "Launch a training job; after an OOM, lower its memory use and relaunch it.",
    "resume": "Resume a run from its latest checkpoint.",
    "runs": "List runs, and how each ended.",
    "show": "Show a run: how it ended and what was changed, or how far it is.",
    "diff": "Show what differs between two runs.",
    "reproduce": "Launch the final config of a fit-report on this machine, and compare.",
    "report": "Show what a run tried and changed: for an issue, a pull request or a paper.",
    "plan": "Estimate memory before launching, and find the first change that fits.",
    "explain": "Diagnose why a job failed from its log.",
    "doctor": "Check what this machine and the job's Python allow.",
    "ladder": "List the strategies in the order they are tried.",
    "models": "List the models whose size is known without a network.",
    "mcp": "Offer plan, explain, launch and show to a coding agent.",
    "completion": "Print what completes commands and options in your shell.",
}


class _Lazy(click.Group):
    """A group that imports a subcommand when it is used, so that `--help` is fast."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the subcommand; that a reader of its output stops early is not a failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if is_of_output(error):
                return 0
            raise

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"oomguard.cli.{name}_command").command
        if not isinstance(command, click.Command):
            return None
        command.epilog = epilog_of(name)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UsageError(
                f"unknown command {args[0]!r}",
                next_step=f"{did_you_mean(args[0], COMMANDS)} See oomguard --help.".strip(),
            )
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="oomguard", message="%(prog)s %(version)s")
def cli() -> None:
    """Run a fine-tuning job to completion even if it runs out of memory.

    For example: oomguard launch train.yaml
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Only bugs of oomguard itself have a traceback, in a file to report. With `--json` an error is
    printed as a document too.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(arguments or ["--help"], prog_name="oomguard", standalone_mode=False)
    except OomguardError as error:
        return _fail(error, arguments)
    except click.ClickException as error:
        return _fail(UsageError(error.format_message(), next_step=_help(error)), arguments)
    except (KeyboardInterrupt, click.Abort):
        return _interrupted(arguments)
    except (Exception, SystemExit) as error:  # noqa: BLE001 # perhaps our own bug
        return _unforeseen(error, arguments)
    return int(code or 0)


#: What CPython's `threading` says where no thread can be started.
_NO_THREAD = "can't start new thread"


def _unforeseen(error: BaseException, arguments: Sequence[str]) -> int:
    """Return the exit code for an error that stdout, a limit or a bug of our own has caused."""
    if isinstance(error, OSError) and is_of_output(error):
        return _fail(UsageError(f"stdout cannot be written: {error.strerror}"), ())
    if isinstance(error, BlockingIOError) or str(error) == _NO_THREAD:
        what = "the limit on processes and threads is reached: none can be started"
        next_step = "Raise it: ulimit -u, or pids.max of the cgroup (docker run --pids-limit)."
        return _fail(UsageError(what, next_step=next_step), arguments)
    return _own_fault(error, arguments)


def _help(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"See {context.command_path} --help." if context else "See oomguard --help."


def _fail(error: OomguardError, arguments: Sequence[str]) -> int:
    _say(f"oomguard: {error}")
    where = str(error.where) if error.where else None
    _print_error(arguments, what=error.what, where=where, next_step=error.next_step)
    return error.exit_code


def _say(text: str) -> None:
    from oomguard.cli.output import complain  # noqa: PLC0415 # only where it is needed

    complain(text)


def _print_error(arguments: Sequence[str], *, what: str, where: str | None, next_step: str) -> None:
    """Print an error as a JSON document on stdout if `--json` was given."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in own:
        from oomguard.cli.output import print_json  # noqa: PLC0415 # only where it is needed

        try:
            print_json({"error": {"what": what, "where": where, "next": next_step}})
        except OSError:
            discard(sys.stdout)


def _interrupted(arguments: Sequence[str]) -> int:
    """Report Ctrl-C before a job is started; a run reports its own interruption."""
    _say("oomguard: interrupted")
    _print_error(arguments, what="interrupted", where=None, next_step="")
    return ExitCode.INTERRUPTED


def _own_fault(error: BaseException, arguments: Sequence[str]) -> int:
    from oomguard.redact import redact  # noqa: PLC0415 # only where it is needed

    text = redact("".join(traceback.format_exception(error)))
    what = f"internal error in oomguard: {type(error).__name__}: {error}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="oomguard-fault-", suffix=".txt", delete=False, encoding="utf-8"
        ) as log:
            log.write(f"oomguard {__version__}, Python {sys.version}\n{text}")
        next_step = f"Please report it and attach {Path(log.name)}."
    except OSError as full:
        next_step = f"Please report it; its traceback could not be written: {full.strerror}."
    _say(f"oomguard: {what}\n  {next_step}")
    _print_error(arguments, what=what, where=None, next_step=next_step)
    return ExitCode.OWN_FAULT


def run() -> None:
    """Run the console script."""
    open_missing()
    sys.exit(main())
