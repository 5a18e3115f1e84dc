"""The history database: recorded values come back, and a broken one stops no run."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace

import pytest

from oomguard.estimate.correct import UNCORRECTED, Measured, corrected
from oomguard.estimate.memory import Term
from oomguard.predict.history import FitIndex, HistoryKey

HERE = HistoryKey(device="RTX 3090", versions={"torch": "2.13"}, framework="trl", model="m")
TERMS = {
    Term.WEIGHTS: 1000, Term.ACTIVATIONS: 1000, Term.ALLOCATOR_SLACK: 100, Term.CUDA_CONTEXT: 400,
}  # fmt: skip
OFF = Measured(
    terms=TERMS, allocated_bytes=2220, reserved_bytes=2370, loaded_bytes=1020, context_bytes=500
)


def test_what_was_measured_corrects_what_is_predicted(tmp_path):
    index = FitIndex(tmp_path / "fits.sqlite")
    assert index.ratios(HERE) == UNCORRECTED
    index.add_measurement(HERE, OFF)
    found = FitIndex(tmp_path / "fits.sqlite").ratios(HERE)
    assert found.runs == 1
    better = corrected(TERMS, found)
    assert (better[Term.WEIGHTS], better[Term.CUDA_CONTEXT]) == (1020, 500)
    assert better[Term.ALLOCATOR_SLACK] == 150
    assert better[Term.ACTIVATIONS] == pytest.approx(1200, rel=0.01)


def test_another_device_or_version_is_another_matter(tmp_path):
    index = FitIndex(tmp_path / "fits.sqlite")
    index.add_measurement(HERE, OFF)
    other = HistoryKey(device="A10", versions=HERE.versions, framework="trl", model="m")
    newer = HistoryKey(device="RTX 3090", versions={"torch": "3.0"}, framework="trl", model="m")
    assert index.ratios(other).runs == index.ratios(newer).runs == 0


def test_a_measurement_that_says_something_else_is_not_taken_for_a_ratio(tmp_path):
    index = FitIndex(tmp_path / "fits.sqlite")
    index.add_measurement(HERE, replace(OFF, allocated_bytes=9000, reserved_bytes=9000))
    assert index.ratios(HERE) == UNCORRECTED


def test_an_index_of_the_first_layout_keeps_its_rungs_and_learns_anew(tmp_path):
    path = tmp_path / "fits.sqlite"
    with sqlite3.connect(path) as base:
        base.executescript(
            "CREATE TABLE measured (id INTEGER PRIMARY KEY, worked REAL, slack REAL);"
            "CREATE TABLE fits (key TEXT PRIMARY KEY, at TEXT, path TEXT NOT NULL);"
            "INSERT INTO measured (worked, slack) VALUES (1.5, 1.5);"
            "INSERT INTO fits (key, path) VALUES ('job', '[\"enable_qlora\"]');"
            "PRAGMA user_version=1;"
        )
    base.close()
    index = FitIndex(path)
    assert index.recall("job") == ("enable_qlora",)
    assert index.ratios(HERE) == UNCORRECTED
    index.add_measurement(HERE, OFF)
    assert (index.ratios(HERE).runs, index.lost) == (1, None)


def test_a_row_that_is_none_of_ours_is_passed_over(tmp_path):
    index = FitIndex(tmp_path / "fits.sqlite")
    index.add_measurement(HERE, OFF)
    with sqlite3.connect(index.path) as base:
        base.execute("INSERT INTO measured SELECT NULL, at, device, versions, framework, model,"
                     " '[1]', allocated, reserved, loaded, context FROM measured")  # fmt: skip
    base.close()
    assert index.ratios(HERE).runs == 1


def test_the_rungs_that_worked_are_remembered(tmp_path):
    index = FitIndex(tmp_path / "fits.sqlite")
    assert index.recall("job") is None
    index.remember("job", ("halve_micro_batch", "enable_qlora"))
    index.remember("job", ("halve_micro_batch",))
    assert index.recall("job") == ("halve_micro_batch",)
    assert index.lost is None


@pytest.mark.parametrize(
    "content", [b"", b"no database at all", b"SQLite format 3\x00" + b"\xff" * 200]
)
def test_a_broken_file_is_left_alone_and_stops_nothing(tmp_path, content):
    path = tmp_path / "fits.sqlite"
    path.write_bytes(content)
    index = FitIndex(path)
    index.add_measurement(HERE, OFF)
    index.remember("job", ())
    assert index.ratios(HERE).runs in (0, 1)
    if content:
        assert index.lost is not None
        assert str(path) in index.lost
        assert path.read_bytes() == content


def test_a_file_of_a_newer_layout_is_left_alone(tmp_path):
    path = tmp_path / "fits.sqlite"
    base = sqlite3.connect(path)
    base.execute("PRAGMA user_version=99")
    base.close()
    index = FitIndex(path)
    index.remember("job", ())
    assert index.recall("job") is None
    assert index.lost is not None


def test_a_locked_file_costs_no_more_than_its_patience(tmp_path, monkeypatch):
    monkeypatch.setattr("oomguard.predict.history.PATIENCE_S", 0.05)
    path = tmp_path / "fits.sqlite"
    FitIndex(path).remember("before", ())
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    index = FitIndex(path)
    index.remember("job", ())
    assert index.lost is not None
    holder.execute("ROLLBACK")
    holder.close()
    assert index.recall("before") == ()


def test_a_place_that_cannot_be_written_is_no_index(tmp_path):
    (tmp_path / "file").write_text("")
    index = FitIndex(tmp_path / "file" / "fits.sqlite")
    index.add_measurement(HERE, OFF)
    assert index.recall("job") is None
    assert index.lost is not None


def test_many_runs_write_at_once(tmp_path):
    path = tmp_path / "fits.sqlite"
    FitIndex(path).remember("first", ())
    threads = [
        threading.Thread(target=lambda n=n: FitIndex(path).remember(f"job{n}", (str(n),)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [FitIndex(path).recall(f"job{n}") for n in range(8)] == [(str(n),) for n in range(8)]
