"""`oomguard doctor`: what is missing is named, with the way to get it."""

from __future__ import annotations

import json
import shutil
import sys
from typing import NamedTuple

import pytest

from oomguard.cli.main import main
from oomguard.machine.cgroups import Cgroup, own_cgroup

MIB = 1 << 20


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def findings(capsys):
    """Return a function that gives the rows about a thing, for the Python of these tests."""

    def rows(about):
        assert main(["doctor", "--python", sys.executable, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        return [row for row in document["findings"] if row["about"] == about]

    return rows


def test_a_python_without_torch_is_a_problem_and_is_not_started(findings):
    (row,) = findings("python")
    assert row["state"] == "problem"
    assert f"{sys.executable} has no torch" in row["text"]
    assert "--python" in row["next_step"]
    assert findings("monitor") == []


def test_each_missing_package_is_named_with_its_strategies_and_its_command(findings):
    whole, *rows = findings("strategies")
    assert whole["state"] == "ok"
    named = {row["text"].split(": ")[1].split()[0]: row for row in rows}
    assert set(named) == {"deepspeed", "bitsandbytes", "liger_kernel"}
    assert "enable_qlora" in named["bitsandbytes"]["text"]
    assert named["deepspeed"]["next_step"] == f"{sys.executable} -m pip install deepspeed"
    missing = sum(row["text"].count(",") + 1 for row in rows)
    working, of = (int(word) for word in whole["text"].split() if word.isdigit())
    assert working + missing == of


def test_a_shared_memory_of_64_mib_is_a_problem(findings, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 * MIB, 0, 64 * MIB))
    (row,) = findings("shared memory")
    assert (row["state"], "64.00 MiB" in row["text"]) == ("problem", True)
    assert "--shm-size" in row["next_step"]


def test_a_cgroup_that_cannot_be_made_says_what_does_not_work(findings, monkeypatch):
    def denied(_self, _name):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Cgroup, "make", denied)
    (row,) = findings("cgroup")
    assert row["state"] == "optional"
    assert "--host-memory-by cgroup does not work" in row["text"]


def test_no_group_of_its_own_is_left_behind(findings):
    findings("cgroup")
    own = own_cgroup()
    assert own is None or not list(own.folder.glob("oomguard-*-doctor-*"))


def test_each_line_has_its_state_and_what_to_do_is_below(capsys):
    assert main(["doctor", "--python", sys.executable]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("problem  python        ")
    assert lines[1].startswith(" " * 23 + "Activate")


def test_a_python_that_does_not_exist_is_a_usage_error(capsys):
    assert main(["doctor", "--python", "/nope/python"]) == 2
    assert "there is no such Python" in capsys.readouterr().err
