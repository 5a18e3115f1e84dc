"""Small configs, each the shape of something that people run, and what is right about each.

`right.json` has for each folder the GPUs of its job, and for each file or command the facts that a
plan has to state; figures are GiB, from and to.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from oomguard.cli.main import main
from oomguard.units import GIB

DATA = Path(__file__).parents[1] / "data" / "reading"
RIGHT = json.loads((DATA / "right.json").read_text(encoding="utf-8"))
JOBS = [(case, job) for case, facts in RIGHT.items() for job in facts["jobs"]]
#: Facts of the answer that are compared as they are.
PLAIN = ("framework", "method", "model")


def test_every_folder_has_a_right_answer() -> None:
    folders = {folder.name for folder in DATA.iterdir() if folder.is_dir()}
    assert folders == RIGHT.keys()
    for case, facts in RIGHT.items():
        files = {file.name for file in (DATA / case).iterdir() if file.suffix in (".yaml", ".txt")}
        named = {word for job in facts["jobs"] for word in (job, *job.split())}
        for file in (DATA / case).glob("*.txt"):
            named |= {*file.read_text().split()}
        assert files <= named, case
        assert all(facts["jobs"].values()), case


@pytest.mark.parametrize(("case", "job"), JOBS, ids=[f"{case}-{job}" for case, job in JOBS])
def test_each_case_is_read_right_or_refused_for_the_true_reason(
    case: str,
    job: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("oomguard.cli.plan_job.tracer_of", lambda *_, **__: None)
    shutil.copytree(DATA / case, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    gpus, right = str(RIGHT[case].get("gpus", 1)), RIGHT[case]["jobs"][job]
    main(["plan", "--json", "--gpu", "a100-80", "--gpus", gpus, *words(job)])
    _check(json.loads(capsys.readouterr().out), right)


def words(job: str) -> list[str]:
    """Return a config's name, or the command that a file or the job itself states."""
    if job.endswith(".yaml") and " " not in job:
        return [job]
    return ["--", *(Path(job).read_text() if job.endswith(".txt") else job).split()]


def _check(answer: dict[str, Any], right: dict[str, Any]) -> None:
    if "refused" in right:
        error = answer["error"]
        assert right["refused"] in f"{error['what']} {error['next']}"
        return
    assert "error" not in answer, answer["error"]
    asked, trained = answer["asked"], answer["trained"]
    estimate = asked["estimate"]
    sizes = {
        "expected_gib": estimate["expected_bytes"],
        "allocated_gib": estimate["allocated_bytes"],
        "weights_gib": estimate["terms"].get("weights", 0),
    }
    keys = [one["key"] for one in answer["unmodelled"]]
    found = {
        **{name: answer.get(name) for name in PLAIN},
        "what": trained["what"],
        "parameters": trained["parameters"],
        "fits": asked["fits"],
        "unmodelled": keys,
        "plan": {name: asked["plan"][name] for name in right.get("plan", ())},
        "rejected": (answer["rejected"] or {}).get("message"),
    }
    for fact, value in right.items():
        if fact in sizes:
            low, high = value
            assert low <= sizes[fact] / GIB <= high, fact
        elif fact == "not_fits":
            assert asked["fits"] != value
        elif fact == "names":
            assert value in keys
        elif fact == "note":
            assert any(value in note for note in answer["notes"])
        else:
            assert found[fact] == value, fact
