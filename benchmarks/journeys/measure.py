"""Count the files and functions that three journeys through oomguard enter.

    python benchmarks/journeys/measure.py [--root CHECKOUT] [--out FILE.json]

The journeys: `oomguard plan` of recipes/litgpt/train.yaml on an A10 (without a trace: there is no
torch here), `oomguard launch` of toy_job.py (one OOM, two attempts, no GPU, no prediction), and
the part of that launch between the job's OOM and the start of its next attempt. Only frames of
oomguard's own process and of the checkout's src and strategies count; lambdas, comprehensions and
class and module bodies do not. `--root` profiles another checkout with this same script.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType

HERE = Path(__file__).resolve().parent
Call = tuple[float, int, str, str, str]  # time, thread, file, function, file of the caller


def profiled(root: Path, argv: list[str]) -> list[Call]:
    """Return the calls made while `oomguard ARGV` ran in this process."""
    calls: list[Call] = []
    own = (f"{root}/src/oomguard/", f"{root}/strategies/")

    def on_event(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or code.co_name.startswith("<") or not code.co_filename.startswith(own):
            return
        if code.co_flags & 0x2 == 0:  # CO_NEWLOCALS: unset in the body of a class
            return
        back = frame.f_back
        while back is not None and not back.f_code.co_filename.startswith(own):
            back = back.f_back
        caller = "" if back is None else back.f_code.co_filename
        name = f"{code.co_filename}:{code.co_firstlineno}"
        calls.append((time.monotonic(), threading.get_ident(), code.co_filename, name, caller))

    from oomguard.cli.main import main  # noqa: PLC0415  the checkout's own

    threading.setprofile(on_event)
    sys.setprofile(on_event)
    try:
        code = main(argv)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    if code != 0:
        raise SystemExit(f"oomguard {' '.join(argv)} ended with {code}")
    return calls


def counts(calls: list[Call]) -> dict[str, int]:
    """Return what a journey entered, and how often it moved from one file to another."""
    moves, last = 0, {}
    for _, thread, file, _, _ in calls:
        moves += last.get(thread, file) != file
        last[thread] = file
    return {
        "files": len({file for _, _, file, _, _ in calls}),
        "functions": len({name for _, _, _, name, _ in calls}),
        "cross_file_calls": sum(bool(caller) and caller != file for _, _, file, _, caller in calls),
        "moves_file_to_file": moves,
    }


def marks(folder: Path) -> tuple[float, float]:
    """Return when the job ran out of memory and when its next attempt started."""
    lines = [line.split() for line in (folder / "marks.txt").read_text().splitlines()]
    failed = next(float(at) for what, at in lines if what == "oom")
    return failed, next(float(at) for what, at in lines if what == "start" and float(at) > failed)


def journey(name: str, root: Path) -> dict[str, dict[str, int]]:
    """Run one command in this process and return the figures of the journeys it makes."""
    if name == "plan":
        recipe = str(root / "recipes" / "litgpt" / "train.yaml")
        calls = profiled(root, ["plan", recipe, "--gpu", "a10"])
        return {"plan": counts(calls)}
    job = [sys.executable, "train.py", "--per_device_train_batch_size", "8", "--output_dir", "out"]
    Path("train.py").write_text((HERE / "toy_job.py").read_text())
    argv = ["launch", "--no-predict", "--framework", "hf_trainer", "--", *job]
    calls = profiled(root, argv)
    failed, resumed = marks(Path.cwd())
    window = [call for call in calls if failed <= call[0] <= resumed]
    return {"launch": counts(calls), "oom_to_next_attempt": counts(window)}


def main() -> None:
    """Run each command in a process of its own, print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=HERE.parents[1])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--journey", help=argparse.SUPPRESS)
    given = parser.parse_args()
    root = given.root.resolve()
    if given.journey:
        print(json.dumps(journey(given.journey, root)), file=sys.__stderr__)
        return
    figures: dict[str, dict[str, int]] = {}
    for name in ("plan", "launch"):
        with tempfile.TemporaryDirectory() as folder:
            env = {**os.environ, "PYTHONPATH": f"{root}/src", "XDG_DATA_HOME": folder}
            done = subprocess.run(
                [sys.executable, __file__, "--root", root, "--journey", name],
                cwd=folder, env=env, capture_output=True, text=True, check=False,
            )  # fmt: skip
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        figures |= json.loads(done.stderr.splitlines()[-1])
    for name, row in figures.items():
        print(name, *(f"{key} {value}" for key, value in row.items()), sep="  ")
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
