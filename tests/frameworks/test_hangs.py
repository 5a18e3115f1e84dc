"""Ranks that wait for one that is not coming: real torchrun, real gloo, a real cap."""

from __future__ import annotations

import json
import socket

import pytest
from environments import environment
from ranks import TORCHRUN, cap_bytes, events, launch


@pytest.fixture(scope="module")
def python():
    return environment("hf")


@pytest.fixture(scope="module")
def one_rank_ran_out(tmp_path_factory, python):
    folder = tmp_path_factory.mktemp("ranks")
    ended = launch(folder, python, "--host-memory", str(cap_bytes(python)))
    return folder, ended


def test_a_rank_out_of_memory_in_mid_collective_does_not_keep_the_others_waiting(one_rank_ran_out):
    folder, ended = one_rank_ran_out
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, *_ = events(folder, "exited")
    noticed = min(event["t"] for event in events(folder, "noticed"))
    assert first["verdict"]["kind"] == "host_oom"
    assert first["verdict"]["rank"] == 1
    assert first["t"] - noticed < 3.0  # the promise; gloo itself would wait for 30 minutes


def test_it_trains_with_the_same_global_batch_over_both_ranks(one_rank_ran_out):
    folder, _ = one_rank_ran_out
    report = json.loads((folder / "oomguard-runs" / "run" / "fit-report.json").read_text())
    assert report["global_batch"] == 16
    assert report["final"]["micro_batch"] == 4
    assert report["final"]["accumulation"] == 2
    assert report["attempts"][-1]["optimizer_steps"] == 4


def test_a_rank_that_stops_stepping_without_a_word_is_a_failure_and_not_retried(tmp_path, python):
    ended = launch(tmp_path, python, "--hang-timeout", "4", job=("--stop_at", "3"))
    assert ended.returncode == 1
    assert len(events(tmp_path, "planned")) == 1
    (finished,) = events(tmp_path, "finished")
    assert finished["reason"] == "no progress from the job for 4 s"


def test_a_port_that_is_taken_is_told_as_what_it_is_and_not_retried(tmp_path, python):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        at = ("--master_addr", "127.0.0.1", "--master_port", str(port))
        ended = launch(tmp_path, python, ranks=(*TORCHRUN, *at))
    assert ended.returncode == 1
    (exited,) = events(tmp_path, "exited")
    assert exited["verdict"]["kind"] == "not_oom"
    (finished,) = events(tmp_path, "finished")
    assert "address already in use" in finished["reason"]
    assert f"port: {port}" in finished["reason"]
