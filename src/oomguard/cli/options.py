"""The options of a run, each declared once as a field of `Options`.

The flags of `launch` and `plan`, the keys of the `oomguard:` block, the recorded `Limits` and the
table in docs/options.md are generated from the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from oomguard import present
from oomguard.cli.option_types import (
    ARGUMENTS,
    COUNT,
    FOLDER,
    GRACE,
    IDS,
    NAME,
    PATH,
    SECONDS,
    SIZE,
    STEPS,
    SWITCH,
    ValueType,
    one_of,
)
from oomguard.cli.output import complain
from oomguard.configfile.document import Document
from oomguard.errors import ConfigError, UsageError, did_you_mean
from oomguard.ladder.strategy_contract import Fidelity
from oomguard.process.limits import CapBy
from oomguard.run.events import GRACE_S, Limits

F = TypeVar("F", bound=Callable[..., object])
BLOCK = "oomguard"
RUNS = "oomguard-runs"
LAUNCH, PLAN, RESUME = "launch", "plan", "resume"
COMMAND = "oomguard.job.command"
PLAN_ALONE = {
    "--gpu",
    "--gpus",
    "--prices",
    "--max",
    "--sweep",
    "--compare",
    "--csv",
    "--ci",
    "--explain-terms",
}
#: Options that were set, by field of `Options`.
Stated = Mapping[str, object]


# --- The options ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What is declared of an option, besides its type and default.

    `flag` is as click spells it, `""` if it is only in the block; `key` is the one in the block,
    `""` if it is only a flag. `limit` is the field of `Limits` that records it.
    `renamed` are its former flags, which still work and print a note.
    """

    help: str
    value_type: ValueType
    flag: str
    key: str
    commands: tuple[str, ...]
    limit: str
    renamed: tuple[str, ...]


def option(
    help_text: str,
    value_type: ValueType,
    *,
    default: object = None,
    flag: str = "",
    key: str = "",
    commands: tuple[str, ...] = (LAUNCH,),
    limit: str = "",
    renamed: tuple[str, ...] = (),
) -> Any:
    """Declare a field of `Options`."""
    declared = Declared(
        help=help_text.format(default=default),
        value_type=value_type,
        flag=flag,
        key=key,
        commands=commands,
        limit=limit,
        renamed=renamed,
    )
    return field(default=default, metadata={"option": declared})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run a job: flags over the `oomguard:` block over the defaults here.

    Sizes are in bytes, times in seconds; paths are as they were written.
    """

    framework: str | None = option(
        "Name of the framework, if it cannot be detected from the config or command.",
        NAME, flag="--framework", key="framework", commands=(LAUNCH, PLAN),
    )  # fmt: skip
    command: tuple[str, ...] = option(
        "Command that starts the job; for a script, the other keys of the file become its flags.",
        ARGUMENTS, default=(), key="command", commands=(),
    )  # fmt: skip
    python: str | None = option(
        "Python interpreter of the environment that the framework is installed in.",
        PATH, flag="--python", key="python", commands=(LAUNCH, PLAN),
    )  # fmt: skip
    ladder: str | None = option(
        "Strategies to try, in this order: ids separated by commas, or classic for the basic six "
        "(default: all; `oomguard ladder` lists them).",
        IDS, flag="--ladder", key="ladder", commands=(LAUNCH, PLAN),
    )  # fmt: skip
    allow: Fidelity = option(  # noqa: RUF009  declares a field
        "Strongest change allowed. same_math: the same loss up to rounding; same_recipe: also "
        "other numerics, e.g. an 8-bit optimizer; new_recipe: also shorter sequences, frozen "
        "parts or a 4-bit base (default: {default.value}).",
        one_of(*(fidelity.value for fidelity in Fidelity)), default=Fidelity.NEW_RECIPE,
        flag="--allow", key="allow", commands=(LAUNCH, PLAN), limit="allow",
    )  # fmt: skip
    strategies: str | None = option(
        "Folder with strategy files of your own, tried in addition.",
        FOLDER, flag="--strategies", key="strategies", commands=(LAUNCH, PLAN),
    )  # fmt: skip
    max_attempts: int = option(
        "Maximum number of launches (default: {default}).",
        COUNT, default=40, flag="--max-attempts", key="max_attempts", limit="max_attempts",
    )  # fmt: skip
    host_memory_bytes: int | None = option(
        "Host memory limit for the job, e.g. 16GiB.",
        SIZE, flag="--host-memory", key="host_memory", limit="host_memory_bytes",
    )  # fmt: skip
    host_memory_by: str = option(
        "How to enforce --host-memory: rlimit, for each process (default), or cgroup, for all "
        "processes together.",
        one_of(*(by.value for by in CapBy)), default=CapBy.RLIMIT.value,
        flag="--host-memory-by", key="host_memory_by",
    )  # fmt: skip
    gpu_memory_bytes: int | None = option(
        "Memory limit for each GPU, e.g. 24GiB.",
        SIZE, flag="--gpu-memory", key="gpu_memory", limit="gpu_memory_bytes",
    )  # fmt: skip
    hang_timeout_s: float | None = option(
        "Kill the job if it makes no progress for this long, once it has taken a step.",
        SECONDS, flag="--hang-timeout", key="hang_timeout", limit="hang_timeout_s",
    )  # fmt: skip
    checkpoint_every: int | None = option(
        "Checkpoint every N optimizer steps if the job itself saves none.",
        STEPS, flag="--checkpoint-every", key="checkpoint_every",
    )  # fmt: skip
    relax: bool = option(
        "After a fit, revert changes that turn out unnecessary, each verified by a short trial "
        "(default: relax).",
        SWITCH, default=True, flag="--relax/--no-relax", key="relax", limit="relax",
    )  # fmt: skip
    in_place: bool = option(
        "After an OOM in a training step of the Hugging Face Trainer, run that step again in "
        "smaller parts, without a relaunch; where that does not give the same loss and gradients, "
        "the job is relaunched (default: in-place, if the ladder has halve_micro_batch "
        "or bound_tokens).",
        SWITCH, default=True, flag="--in-place/--no-in-place", key="in_place", limit="in_place",
    )  # fmt: skip
    grow: bool = option(
        "Start with short sequences and a micro batch of 1, and grow to the largest that fits.",
        SWITCH, default=False, flag="--grow", key="grow", limit="grow",
    )  # fmt: skip
    probe: bool = option(
        "Before the run, try each config for two steps on the longest batches, in a scratch "
        "folder.",
        SWITCH, default=False, flag="--probe", key="probe", limit="probe",
    )  # fmt: skip
    grace_s: float = option(
        "Grace period to save a checkpoint after SIGTERM or SIGUSR1 (default: {default:g}).",
        GRACE, default=GRACE_S, flag="--grace", commands=(LAUNCH, RESUME), limit="grace_s",
    )  # fmt: skip
    runs_dir: str = option(
        "Parent of run folders (default: {default}).",
        FOLDER, default=RUNS, flag="--runs", key="runs_dir",
    )  # fmt: skip
    name: str | None = option("Name of the run folder.", NAME, flag="--name", key="name")
    predict: bool = option(
        "Do not predict memory use; start with the requested config.",
        SWITCH, default=True, flag="--no-predict",
    )  # fmt: skip
    fits: str | None = option(
        "Database of what fit in earlier runs, and of their memory use (default: in the user data "
        "folder).",
        PATH, flag="--fits", commands=(LAUNCH, PLAN),
    )  # fmt: skip
    monitor: bool = option(
        "Do not load the monitor into the job's processes; failures are diagnosed from the log and "
        "the exit code.",
        SWITCH, default=True, flag="--no-monitor", limit="inside", renamed=("--no-inside",),
    )  # fmt: skip


def declared(of: type = Options) -> dict[str, Declared]:
    """Return each option by the name of its field."""
    return {one.name: one.metadata["option"] for one in fields(of)}


# --- From the command line ---


def flags(command: str, *, of: type = Options) -> Callable[[F], F]:
    """Add a command's flags; those that are not given are None."""

    def add(function: F) -> F:
        for one in reversed([one for one in fields(of) if _is_flag_of(one, command)]):
            function = _flag(one)(function)
        return function

    return add


def _is_flag_of(one: Field[Any], command: str) -> bool:
    return command in one.metadata["option"].commands


def _flag(one: Field[Any]) -> Callable[[F], F]:
    of: Declared = one.metadata["option"]
    if of.value_type is SWITCH and "/" not in of.flag:
        return click.option(
            of.flag, one.name, is_flag=True, flag_value=not one.default, default=None, type=bool,
            help=of.help,
        )  # fmt: skip
    if of.value_type is SWITCH:
        return click.option(of.flag, one.name, default=None, help=of.help)
    return click.option(
        of.flag, one.name, type=of.value_type.flag_type, metavar=of.value_type.metavar, help=of.help
    )


#: A config file, in place of a command after --.
train_file = click.argument("train", required=False, type=click.Path(path_type=Path))
#: A run, by its folder or by its name.
run_argument = click.argument("run", type=click.Path(path_type=Path))
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document to stdout.")
verbose = click.option(
    "--verbose", is_flag=True, help="List skipped strategies with their reasons."
)


def run_folder(run: Path) -> Path:
    """Return the folder of a run that was named by it, by a file in it, or under oomguard-runs."""
    if present.is_file(run):
        return run.parent
    named = Path(RUNS) / run
    return named if not present.exists(run) and present.exists(named) else run


def report_place(run: Path) -> Path:
    """Return where a report is: a JSON file that was named itself, else the run's folder."""
    return run if present.is_file(run) and run.suffix == ".json" else run_folder(run)


class WithCommand(click.Command):
    """A command that keeps the arguments after `--` as another program's command line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Separate the command after `--`, then parse the rest."""
        own = args[: args.index("--")] if "--" in args else args
        rest = tuple(args[len(own) + 1 :])
        if "--" in args and not rest:
            raise UsageError(
                "no command after --",
                next_step=f"For example: {ctx.command_path} -- llamafactory-cli train train.yaml",
            )
        ctx.meta[COMMAND] = rest
        try:
            return super().parse_args(ctx, [_renamed(argument) for argument in own])
        except click.NoSuchOption as error:
            what = f"no such option: {error.option_name}"
            raise UsageError(what, next_step=_place_of(ctx, error)) from error
        except click.UsageError as error:
            if "extra argument" in error.message:
                raise UsageError(
                    "a command has to stand after --",
                    next_step=f"{ctx.command_path} [OPTIONS] -- COMMAND...",
                ) from error
            raise

    def collect_usage_pieces(self, _ctx: click.Context) -> list[str]:
        """Show that either a config file or a command is needed."""
        return ["[OPTIONS]", "TRAIN.YAML | -- COMMAND..."]


def _place_of(ctx: click.Context, error: click.NoSuchOption) -> str:
    """Return where an option that this command does not have may belong."""
    if error.possibilities:
        return f"Did you mean {' or '.join(sorted(error.possibilities))}?"
    if ctx.info_name != "plan" and error.option_name in PLAN_ALONE:
        return f"It is an option of oomguard plan. See {ctx.command_path} --help."
    place = "Settings of your framework go into its config, or into its command after --."
    return f"{place} See {ctx.command_path} --help."


def _renamed(argument: str) -> str:
    """Replace a former flag by its current name, and print a note."""
    name, equals, value = argument.partition("=")
    for one in declared().values():
        if name in one.renamed:
            complain(f"note: {name} is now {one.flag}")
            return f"{one.flag}{equals}{value}"
    return argument


# --- From the block ---


def read_block(document: Document, *, of: type = Options) -> Stated:
    """Return the options that a file's `oomguard:` block sets.

    Raises:
        ConfigError: for an unknown key or a wrong value, with file, line and key.
    """
    block = document.get(BLOCK)
    if block is None:
        return {}
    if not isinstance(block, dict):
        raise ConfigError("must be a mapping of options", where=document.where(BLOCK))
    known = {one.key: (name, one.value_type) for name, one in declared(of).items() if one.key}
    stated: dict[str, object] = {}
    for key, value in block.items():
        where = document.where(f"{BLOCK}.{key}")
        if key not in known:
            guess = did_you_mean(str(key), known) or f"Valid options: {', '.join(known)}."
            raise ConfigError("is not an oomguard option", where=where, next_step=guess)
        name, value_type = known[key]
        try:
            if value is not None:
                stated[name] = value_type.read(value)
        except ValueError as error:
            raise ConfigError(str(error), where=where) from error
    return stated


# --- Together, and into the record ---

OptionsT = TypeVar("OptionsT", bound=Options)
LimitsT = TypeVar("LimitsT", bound=Limits)


def options_of(given: Stated, block: Stated, *, of: type[OptionsT]) -> OptionsT:
    """Return options: flags that were `given` (not None), else the block, else the defaults."""
    flagged = {name: value for name, value in given.items() if value is not None}
    return msgspec.convert({**block, **flagged}, of)


def limits_of(options: Options, ladder: tuple[str, ...], *, into: type[LimitsT]) -> LimitsT:
    """Return the options that the run records; `ladder` are the ids of its strategies."""
    values = {
        one.limit: getattr(options, name) for name, one in declared(type(options)).items()
        if one.limit
    }  # fmt: skip
    folder = str(Path(options.strategies).absolute()) if options.strategies else None
    by = options.host_memory_by if options.host_memory_bytes else None
    limits = {**values, "ladder": ladder, "host_memory_by": by, "strategies": folder}
    return msgspec.convert(limits, into)


# --- Into the docs ---


def options_table() -> str:
    """Return the options as a Markdown table."""
    rows = ["| flag | in the `oomguard:` block | commands | what it does |", "|---|---|---|---|"]
    for one in declared().values():
        flag = f"`{one.flag}`" if one.flag else ""
        key = f"`{one.key}`" if one.key else ""
        rows.append(f"| {flag} | {key} | {', '.join(one.commands)} | {one.help} |")
    return "\n".join(rows)
