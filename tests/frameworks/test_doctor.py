"""`oomguard doctor` on the Python of a real framework."""

from __future__ import annotations

import json

from environments import environment

from oomguard.cli.main import main


def states(capsys, python) -> dict[str, str]:
    assert main(["doctor", "--python", str(python), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["findings"]
    return {row["about"]: row["state"] for row in rows}


def test_a_frameworks_environment_is_traced_and_monitored(capsys):
    found = states(capsys, environment("hf"))
    assert (found["python"], found["plan"], found["monitor"]) == ("ok", "ok", "ok")


def test_a_python_that_ignores_the_environment_is_not_reached(capsys, tmp_path):
    isolated = tmp_path / "python3"
    isolated.write_text(f'#!/bin/sh\nexec {environment("hf")} -I "$@"\n')
    isolated.chmod(0o755)
    found = states(capsys, isolated)
    assert (found["python"], found["monitor"]) == ("ok", "problem")
