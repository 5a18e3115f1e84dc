"""An option is declared once: its row is a flag, a key of the block, and recorded."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from oomguard.cli.main import cli, main
from oomguard.cli.option_types import COUNT, SWITCH
from oomguard.cli.options import (
    LAUNCH,
    PLAN,
    RESUME,
    Options,
    declared,
    flags,
    limits_of,
    option,
    options_of,
    options_table,
    read_block,
)
from oomguard.configfile.document import Source
from oomguard.errors import ConfigError
from oomguard.run.events import Limits

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreOptions(Options):
    """The options and two more."""

    cooldown_steps: int = option(
        "Wait this many steps (default: {default}).",
        COUNT,
        default=7,
        flag="--cooldown",
        key="cooldown",
        limit="cooldown_steps",
    )
    chatty: bool = option("Print more.", SWITCH, default=False, flag="--chatty", key="chatty")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreLimits(Limits):
    """A record with one of them."""

    cooldown_steps: int = 0


@click.command(LAUNCH)
@flags(LAUNCH, of=MoreOptions)
def launch(**_given: object) -> None:
    """Do nothing."""


def given(*argv: str) -> dict[str, object]:
    return launch.make_context(LAUNCH, list(argv)).params


def test_a_new_row_is_in_the_help():
    shown = CliRunner().invoke(launch, ["--help"]).output
    assert "--cooldown N" in shown
    assert "Wait this many steps (default: 7)." in shown
    assert "--chatty" in shown


def test_a_new_row_is_a_key_of_the_block_with_its_line():
    block = read_block(_document("oomguard:\n  cooldown: 3\n  chatty: true\n"), of=MoreOptions)
    assert block == {"cooldown_steps": 3, "chatty": True}
    with pytest.raises(ConfigError, match="at least 1") as caught:
        read_block(_document("a: 1\noomguard:\n  cooldown: 0\n"), of=MoreOptions)
    assert str(caught.value.where) == "train.yaml:3, key 'oomguard.cooldown'"


def test_a_new_row_is_recorded():
    options = options_of(given("--cooldown", "4"), {"chatty": True}, of=MoreOptions)
    assert (options.cooldown_steps, options.chatty) == (4, True)
    limits = limits_of(options, ("a",), into=MoreLimits)
    assert msgspec.to_builtins(limits)["cooldown_steps"] == 4


def _document(text: str):
    return Source(path="train.yaml", text=text).document


def test_a_flag_overrides_the_block_and_both_the_default():
    block = {"max_attempts": 3, "relax": False}
    assert options_of(given("--max-attempts", "5"), block, of=Options).max_attempts == 5
    assert options_of(given("--relax"), block, of=Options).relax is True
    assert options_of(given(), block, of=Options).relax is False
    assert options_of(given(), {}, of=Options) == Options()


def test_a_negative_flag_switches_off():
    assert options_of(given("--no-monitor"), {}, of=Options).monitor is False
    assert options_of(given(), {}, of=Options).monitor is True


def test_every_recorded_option_is_a_field_of_the_record():
    limits = {one.name for one in fields(Limits)}
    assert {one.limit for one in declared().values() if one.limit} <= limits


def test_every_option_of_the_record_comes_from_an_option():
    computed = {"ladder", "strategies", "host_memory_by"}  # see limits_of
    recorded = {one.limit for one in declared().values() if one.limit} | computed
    assert recorded == {one.name for one in fields(Limits)}


@pytest.mark.parametrize("command", [LAUNCH, PLAN, RESUME])
def test_the_help_lists_every_option(command, capsys):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    expected = [one.flag.split("/")[0] for one in declared().values() if command in one.commands]
    assert expected
    assert [flag for flag in expected if not re.search(rf"{flag}\b", shown)] == []


def test_the_guide_lists_every_option():
    written = (DOCS / "options.md").read_text().split("do not edit below -->\n")[1]
    assert written == options_table() + "\n", "run: make options-table"


def test_flags_and_keys_are_unique():
    for name in ("flag", "key"):
        values = [getattr(one, name) for one in declared().values() if getattr(one, name)]
        assert len(values) == len(set(values))


@pytest.mark.parametrize("argument", ["--no-inside"])
def test_every_former_flag_is_declared(argument):
    assert argument in [old for one in declared().values() for old in one.renamed]
    assert argument not in CliRunner().invoke(cli, [LAUNCH, "--help"]).output
