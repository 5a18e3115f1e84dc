"""What the tests of faults share: runs of oomguard in which something happens, side by side."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import psutil
import pytest

import faults.training_job as job
from oomguard.process.members import mark_of
from oomguard.run.event_log import parse_history
from oomguard.run.events import Event
from oomguard.run.state import RunRecord, replay
from shell.launches import is_gone, wait_until

#: Cells run in threads, and msgspec crashes where two of them read a class for the first time.
_READS = threading.Lock()

HERE = Path(__file__).parent
JOB = (sys.executable, str(HERE / "training_job.py"), "--output_dir", "out")


class Zygote:
    """A process that forks oomguard ready imported."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, request: dict[str, object]) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._number()

    def wait(self) -> int:
        return self._number()

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@dataclass
class Cell:
    """One run in a folder of its own, from the fault to the end of its resume."""

    folder: Path
    zygote: Zygote
    env: dict[str, str] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)
    pid: int = 0

    @property
    def name(self) -> str:
        return f"cell-{self.folder.name}"

    @property
    def run(self) -> Path:
        return self.folder / "oomguard-runs" / self.name

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text(errors="replace")

    @contextmanager
    def launched(
        self, *options: str, at: str = "", do: str = "", job: tuple[str, ...] = JOB
    ) -> Iterator[int]:
        """Launch; what is done within the block happens while it runs."""
        words = ("launch", "--name", self.name, "--grace", "5", *options, "--", *job)
        with self._oomguard(words, at, do) as pid:
            yield pid

    def launch(self, *options: str, at: str = "", do: str = "", job: tuple[str, ...] = JOB) -> int:
        with self.launched(*options, at=at, do=do, job=job):
            pass
        return self.codes[-1]

    def resume(self, *options: str, at: str = "", do: str = "") -> int:
        """Go on with the run."""
        with self._oomguard(("resume", str(self.run), *options), at, do):
            pass
        return self.codes[-1]

    @contextmanager
    def _oomguard(self, words: tuple[str, ...], at: str, do: str) -> Iterator[int]:
        request = {
            "words": words, "cwd": str(self.folder), "at": at, "do": do,
            "env": {"XDG_DATA_HOME": str(self.folder / "data"), **self.env},
            "said": str(self.folder / "said.txt"),
        }  # fmt: skip
        self.pid = self.zygote.start(request)
        try:
            yield self.pid
        except BaseException:
            os.kill(self.pid, signal.SIGKILL)
            raise
        finally:
            self.codes.append(self.zygote.wait())

    def wait_held(self) -> None:
        wait_until((self.folder / "held").exists)

    def wait_reached(self) -> None:
        wait_until((self.folder / "reached").exists)

    def kill_with_guard(self) -> None:
        """Kill oomguard, and first what would clean up after it."""
        children = psutil.Process(self.pid).children()
        (guard,) = (one for one in children if "watchdog.py" in " ".join(one.cmdline()))
        guard.kill()
        wait_until(lambda: is_gone(guard.pid))
        os.kill(self.pid, signal.SIGKILL)

    def left(self) -> list[int]:
        """List the processes of the run's attempts that are still there."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if (mark_of(pid) or "").startswith(f"{self.name}-")]

    @property
    def events(self) -> tuple[Event, ...]:
        with _READS:
            return parse_history(BytesIO((self.run / "events.jsonl").read_bytes()), "").events

    @property
    def record(self) -> RunRecord:
        return replay(self.events)

    @property
    def report(self) -> dict:
        return json.loads((self.run / "fit-report.json").read_text())

    @property
    def kinds(self) -> list[str]:
        """Return the kind of verdict of each attempt, in their order."""
        return [one.verdict.kind.value if one.verdict else "none" for one in self.record.attempts]

    def ledger(self) -> list[dict]:
        path = self.folder / "out" / "ledger.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def is_trained(self, steps: int = 8) -> bool:
        """Return whether it came to the weights of a run in which nothing happened."""
        final = self.folder / "out" / "final.txt"
        return final.exists() and final.read_text() == job.trained(steps)


def scenarios(*functions: Callable[[Cell], None]) -> tuple[object, object]:
    """Make a fixture that plays each function in a cell of its own, and the tests of them."""
    names = [function.__name__ for function in functions]

    @pytest.fixture(scope="module")
    def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
        def play(function: Callable[[Cell], None]) -> Callable[[Zygote], None]:
            folder = tmp_path_factory.mktemp(function.__name__)
            return lambda zygote: function(Cell(folder=folder, zygote=zygote))

        return all_at_once([(function.__name__, play(function)) for function in functions])

    @pytest.mark.parametrize("name", names)
    def test(played: dict[str, object], name: str) -> None:
        if isinstance(played[name], BaseException):
            raise played[name]

    return played, test


def all_at_once(work: list, workers: int = 4) -> dict:
    """Do `work`, pairs of a key and a function of a Zygote, side by side; give results by key."""
    todo: queue.SimpleQueue = queue.SimpleQueue()
    for one in work:
        todo.put(one)
    results: dict = {}

    def loop() -> None:
        zygote = Zygote()
        while True:
            try:
                key, act = todo.get_nowait()
            except queue.Empty:
                break
            try:
                results[key] = act(zygote)
            except BaseException as error:  # noqa: BLE001  told by the test of this key
                results[key] = error
        zygote.close()

    threads = [threading.Thread(target=loop) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
