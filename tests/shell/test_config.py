from __future__ import annotations

import os
from pathlib import Path

import pytest

from oomguard.cli.prepare import MOST_BYTES, load
from oomguard.errors import ConfigError
from oomguard.strategy import Fidelity
from oomguard.units import GIB, MIB

TEXT = """\
# My job
oomguard:
  framework: llamafactory
  command: [torchrun, --nproc_per_node, 2, train.py]  # ours
  python: ~/venv/bin/python

  ladder: [halve_micro_batch, cut_cutoff_len]
  allow: same_recipe
  max_attempts: 5
  host_memory: 24GiB
  host_memory_by: cgroup
  gpu_memory: 1048576
  name: first
  runs_dir: $HOME/runs
  strategies: mine/
# the framework's own
model_name_or_path: m  # base
lr: 1e-4
"""


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return tmp_path / "train.yaml"


def test_the_block_is_read_and_taken_out(train: Path) -> None:
    train.write_text(TEXT, encoding="utf-8")
    loaded = load(train)
    assert loaded.block == {
        "framework": "llamafactory",
        "command": ("torchrun", "--nproc_per_node", "2", "train.py"),
        "python": "~/venv/bin/python",
        "ladder": "halve_micro_batch,cut_cutoff_len",
        "allow": Fidelity.SAME_RECIPE,
        "max_attempts": 5,
        "host_memory_bytes": 24 * GIB,
        "host_memory_by": "cgroup",
        "gpu_memory_bytes": MIB,
        "name": "first",
        "runs_dir": "$HOME/runs",  # nothing is expanded
        "strategies": "mine/",
    }
    assert loaded.document == {"model_name_or_path": "m", "lr": "1e-4"}
    before, after = TEXT.splitlines(), loaded.source.text.splitlines()
    assert loaded.source.path == str(train)
    assert len(after) == len(before)
    assert (after[0], after[15:]) == (before[0], before[15:])
    assert set(after[1:15]) == {""}


@pytest.mark.parametrize("text", ["a: 1\r\nb: 2\r\n", "\ufeffa: 1\n", "a: 1  # 冻结", '{"a": 1}'])
def test_a_file_without_a_block_stays_byte_for_byte(train: Path, text: str) -> None:
    train.write_bytes(text.encode())
    loaded = load(train)
    assert loaded.source.text.encode() == text.encode()
    assert loaded.block == {}


def test_a_json_can_hold_a_block(tmp_path: Path) -> None:
    path = tmp_path / "args.json"
    path.write_text('{\n "oomguard": {"command": ["python", "t.py"]},\n "a": 1\n}', "utf-8")
    loaded = load(path)
    assert loaded.block["command"] == ("python", "t.py")
    assert loaded.document == {"a": 1}
    assert loaded.source.text.splitlines()[2:] == [' "a": 1', "}"]


@pytest.mark.parametrize("value", ["", " {}", " {name: null}"])
def test_an_empty_block_says_nothing(train: Path, value: str) -> None:
    train.write_text(f"oomguard:{value}\na: 1\n", encoding="utf-8")
    assert load(train).block == {}


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        ("laddder: classic", "laddder", "Did you mean 'ladder'?"),
        ("zzz: 1", "zzz", "Valid options: framework, command,"),
        ("host_memory: much", "host_memory", "'much' is not a size"),
        ("host_memory: [1]", "host_memory", "is not a size"),
        ("gpu_memory: true", "gpu_memory", "is not a size"),
        ("gpu_memory: -4", "gpu_memory", "is not a size"),
        ("host_memory_by: cgroups", "host_memory_by", "Did you mean 'cgroup'?"),
        ("max_attempts: 0", "max_attempts", "at least 1, not 0"),
        ("max_attempts: two", "max_attempts", "at least 1, not 'two'"),
        ("max_attempts: true", "max_attempts", "at least 1, not true"),
        ("allow: same", "allow", "must be one of same_math, same_recipe, new_recipe"),
        ("command: python train.py", "command", "must be a list of arguments"),
        ("command: []", "command", "must be a list of arguments"),
        ("command: [[a]]", "command", "must be a list of arguments"),
        ("ladder: 3", "ladder", "must be a string, not 3"),
        ("framework: ''", "framework", "must be a string"),
        ("name: [a]", "name", "must be a string"),
    ],
)
def test_a_wrong_option_is_named_with_line_and_key(
    train: Path, line: str, key: str, message: str
) -> None:
    train.write_text(f"a: 1\noomguard:\n  python: p\n  {line}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(train)
    assert str(caught.value.where) == f"{train}:4, key 'oomguard.{key}'"
    assert message in str(caught.value)


def test_a_block_that_is_no_mapping(train: Path) -> None:
    train.write_text("a: 1\noomguard: yes\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="must be a mapping") as caught:
        load(train)
    assert str(caught.value.where) == f"{train}:2, key 'oomguard'"


def test_a_block_alone_is_no_job(train: Path) -> None:
    train.write_text("oomguard:\n  name: x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="has no framework settings"):
        load(train)


def test_a_missing_file_names_its_neighbour(train: Path) -> None:
    train.write_text("a: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="does not exist") as caught:
        load(train.with_name("trian.yaml"))
    assert caught.value.next_step == "Did you mean 'train.yaml'?"
    with pytest.raises(ConfigError, match="does not exist") as caught:
        load(train.parent / "nowhere" / "train.yaml")
    assert caught.value.next_step == ""


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is not a regular file"):
        load(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"a: 1\nb: caf\xe9\n", 2, "is not UTF-8"),
        (b"\xff\xfea\x00", 1, "is not UTF-8"),
        (b"a: 1\nb: [1\n", 3, "not valid YAML"),
        (b"a: 1\na: 2\n", 2, "a is set here and on line 1"),
        (b"- a\n", 1, "not a mapping"),
        (b"", 1, "is empty"),
        (b"#" * (MOST_BYTES + 1), None, "larger than 4.00 MiB"),
    ],
)
def test_a_broken_file_is_named_with_its_line(
    train: Path, data: bytes, line: int | None, message: str
) -> None:
    train.write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        load(train)
    assert caught.value.where is not None
    assert (caught.value.where.file, caught.value.where.line) == (str(train), line)


@pytest.mark.parametrize("key", ["relax", "grow"])
def test_giving_back_and_growing_are_true_or_false(tmp_path, key):
    path = tmp_path / "train.yaml"
    path.write_text(f"oomguard: {{{key}: true}}\nmodel_name_or_path: m\n")
    assert load(path).block[key] is True
    path.write_text(f"oomguard: {{{key}: always}}\nmodel_name_or_path: m\n")
    with pytest.raises(ConfigError, match="true or false"):
        load(path)
