"""Checkpoints as the Hugging Face Trainer lays them out, made here byte by byte."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.job.checkpoint import Checkpoint, Layout
from oomguard.machine.checkpoint_scan import find, is_whole, stamp

NEEDS = ("trainer_state.json", "*.safetensors|*.bin", "optimizer.pt|optimizer.bin")


def write_checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "__metadata__": {}}
    ).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(16)
    (path / "adapter_model.safetensors").write_bytes(data)
    with zipfile.ZipFile(path / "optimizer.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"not looked at")
    return path


@pytest.fixture
def layout(tmp_path):
    return Layout(folder=str(tmp_path), name=r"checkpoint-(?P<step>\d+)", needs=NEEDS)


def test_whole_checkpoints_come_newest_first(layout, tmp_path):
    paths = [write_checkpoint(tmp_path, step) for step in (2, 10, 4)]
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "runs").mkdir()
    assert find(layout, before={}).whole == (
        Checkpoint(path=str(paths[1]), step=10),
        Checkpoint(path=str(paths[2]), step=4),
        Checkpoint(path=str(paths[0]), step=2),
    )


def test_what_an_earlier_run_left_is_not_picked_up_unless_it_is_written_again(layout, tmp_path):
    stale = write_checkpoint(tmp_path, 6)
    before = stamp(layout)
    assert find(layout, before=before).whole == ()
    os.utime(stale / "optimizer.pt", ns=(1, before[str(stale)] + 1))
    assert [c.step for c in find(layout, before=before).whole] == [6]


@given(cut=st.integers(0, 10_000), name=st.sampled_from(["safetensors", "optimizer", "state"]))
def test_a_checkpoint_cut_off_anywhere_is_damaged(tmp_path_factory, cut, name):
    path = write_checkpoint(tmp_path_factory.mktemp("c"), 3)
    files = {
        "safetensors": "adapter_model.safetensors",
        "optimizer": "optimizer.pt",
        "state": "trainer_state.json",
    }
    file = path / files[name]
    assert is_whole(path, 3, NEEDS)
    whole = file.read_bytes()
    file.write_bytes(whole[: cut % len(whole)])
    assert not is_whole(path, 3, NEEDS)


@given(st.binary(max_size=64))
def test_garbage_is_damaged_and_never_raises(tmp_path_factory, garbage):
    path = write_checkpoint(tmp_path_factory.mktemp("c"), 3)
    (path / "adapter_model.safetensors").write_bytes(garbage)
    (path / "trainer_state.json").write_bytes(garbage)
    assert not is_whole(path, 3, NEEDS)


def test_a_missing_file_or_another_step_is_damage(layout, tmp_path):
    path = write_checkpoint(tmp_path, 4)
    (path / "optimizer.pt").unlink()
    (write_checkpoint(tmp_path, 5) / "trainer_state.json").write_text('{"global_step": 4}')
    found = find(layout, before={})
    assert found.whole == ()
    assert found.damaged == (str(path), str(tmp_path / "checkpoint-5"))


def test_one_that_says_that_it_is_being_written_is_not_whole(tmp_path):
    path = write_checkpoint(tmp_path, 3)
    (path / "checkpoint-is-incomplete.txt").write_text("Checkpoint started at step 3")
    assert not is_whole(path, 3, NEEDS)


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    layout = Layout(folder=str(tmp_path / "nowhere"), name=r"(?P<step>\d+)", needs=())
    assert stamp(layout) == {}
    assert find(layout, before={}).whole == ()
