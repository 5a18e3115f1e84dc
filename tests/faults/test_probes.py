"""Odd values and odd files: each is read as what it means, or refused by name."""

from __future__ import annotations

import os
import sys

import pytest

from faults.probes import (
    CHANGES,
    COMMAND_LINES,
    CONFIG_VALUES,
    CONFIGS,
    RECORD,
    REFUSED,
    STRATEGY_FILES,
    table,
)
from generators import make_job
from oomguard.adapters.contract import JobRequest
from oomguard.adapters.registry import adapter_named
from oomguard.cli.main import main
from oomguard.configfile.document import Source
from oomguard.errors import ConfigError
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.checkpoint import Mode
from oomguard.job.plan import Plan
from oomguard.ladder.climb import Framework, Ladder
from oomguard.ladder.load import load_strategies


def read(framework: str, text: str) -> Plan:
    """Read a config that lies in memory as `oomguard plan` would."""
    adapter = adapter_named(framework)
    whole = Source(path="/there/train.yaml", text=text)
    block = whole.document.values.get("oomguard", {})
    source = Source(path=whole.path, text=whole.document.without("oomguard"))
    argv = adapter.command_for(source, source.document.values, tuple(block.get("command", ())))
    request = JobRequest(argv=argv, cwd="/there", source=source, env={"PATH": "/bin"}, gpus=1)
    return adapter.read(request).asked


@pytest.mark.parametrize("name", CONFIG_VALUES)
@pytest.mark.parametrize("framework", CONFIGS)
def test_a_micro_batch_is_read_as_it_is_meant_or_refused_with_its_line(framework, name):
    value, meant = CONFIG_VALUES[name]
    text = CONFIGS[framework]
    line = next(one for one in text.splitlines() if "{}" in one)
    if value == "TWICE":
        text, value = text.replace(line, f"{line}\n{line}"), "4"
    text = text.replace("{}", value)
    if meant == REFUSED:
        with pytest.raises(ConfigError) as refused:
            read(framework, text)
        assert refused.value.where is not None
        assert refused.value.where.line is not None
    else:
        assert read(framework, text).micro_batch == meant


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "job.py").write_text("open('started', 'w').close()")
    return tmp_path


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_an_option_that_cannot_be_meant_is_refused_before_anything_is_started(folder, capsys, name):
    words, said = COMMAND_LINES[name]
    job = ("--", sys.executable, "job.py", "--per_device_train_batch_size", "4")
    assert main(["launch", "--no-predict", *words, *job]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "started").exists()
    assert not list(folder.rglob("events.jsonl"))


STRATEGY = """
from oomguard.strategy import SAME_MATH, Kind, Remedy, Strategy

def change(job, plan):
    {body}

CHANGE, FIDELITY, SUMMARY = change, SAME_MATH, "mine"
REMEDIES = frozenset({{Remedy(kind=Kind.DEVICE_OOM)}})
{more}
STRATEGY = Strategy(summary=SUMMARY, fidelity=FIDELITY, remedies=REMEDIES, change=CHANGE)
"""


@pytest.mark.parametrize("name", STRATEGY_FILES)
def test_a_strategy_file_that_is_none_is_refused_by_name(folder, capsys, name):
    data, said = STRATEGY_FILES[name]
    fields = (b"CHANGE", b"REMEDIES", b"FIDELITY", b"SUMMARY")
    if data.startswith(fields):
        data = STRATEGY.format(body="return None", more=data.decode()).encode()
    (folder / "mine").mkdir()
    (folder / "mine" / "001_mine.py").write_bytes(data)
    assert main(["ladder", "--strategies", "mine"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "mine/001_mine.py" in told


def link_to_nothing(path):
    path.symlink_to("nowhere")


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing"])
def test_a_strategy_that_is_not_a_file_is_refused_and_not_waited_for(folder, capsys, kind):
    (folder / "mine").mkdir()
    path = folder / "mine" / "001_mine.py"
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "link to nothing": link_to_nothing}
    make[kind](path)
    assert main(["ladder", "--strategies", "mine"]) == 2
    assert "mine/001_mine.py" in capsys.readouterr().err


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_fails_is_skipped_with_its_error(folder, name):
    body, why = CHANGES[name]
    (folder / "mine").mkdir()
    (folder / "mine" / "001_mine.py").write_text(STRATEGY.format(body=body, more=""))
    framework = Framework(
        normalize=lambda _, plan: plan,
        refusal=lambda _, __: None,
        required_packages=lambda _, __: frozenset(),
        resume_mode=lambda _, __, ___: (Mode.RESTART, ""),
    )
    strategies = load_strategies(folder / "mine")
    ladder = Ladder(strategies=strategies, framework=framework)
    asked = Plan(micro_batch=4, accumulation=1)
    ran_out = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD)
    rung = ladder.climb(make_job(asked), [asked], [], ran_out)
    assert rung.plan is not None, "the ladder goes on with another strategy"
    (skipped,) = (skip.reason for skip in rung.skipped if skip.strategy == "mine")
    assert skipped.startswith(why)


@pytest.mark.parametrize("kind", ["empty folder", "pipes alone", "links alone"])
def test_a_folder_without_a_log_is_said_to_have_none(folder, capsys, kind):
    (folder / "logs").mkdir()
    if kind == "pipes alone":
        os.mkfifo(folder / "logs" / "rank0.log")
    elif kind == "links alone":
        (folder / "logs" / "rank0.log").symlink_to("/dev/zero")
    assert main(["explain", "logs"]) == 2
    assert "the folder has no log in it" in capsys.readouterr().err


def test_the_record_of_probes_is_that_of_the_tables():
    assert RECORD.read_text() == table(), "run python tests/faults/probes.py"
