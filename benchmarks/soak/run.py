"""Kill a supervised job at random until it is trained, and check that nothing was lost.

    make soak SOAK_SECONDS=600 SOAK_SEED=1

A small job trains and checkpoints while, at random: oomguard is killed (alone, or with what would
clean up after it), told to stop, or warned; a rank is killed, which the job's launcher starts
again as elastic launchers do; the disk with the run folder fills up and is cleared, or becomes
read-only; the screen is closed; processes send reports that nobody can read, or the socket for them
goes; the run folder is moved and moved back; the log of an attempt is deleted; the event log is cut
in the middle of an event, or has one of a newer version. After each of them `oomguard resume` goes
on. It ends by training to the last step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import psutil

from oomguard.process.members import mark_of
from oomguard.process.report_server import SOCKET_FILE
from oomguard.run.event_log import parse_history

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
from faults.training_job import trained  # noqa: E402  the job that the tests of faults use

NAME = "soak"
#: A signal may come before oomguard listens to it, or when it does no more.
LAST_CODES = {
    0: "trained", 130: "interrupted", -9: "killed", 2: "no room",
    -15: "stopped before it began", -10: "stopped before it began",
}  # fmt: skip
#: Oomguard is expected to end soon after these.
ENDS = ("kill", "kill", "kill-all", "stop", "warn", "disk", "read-only", "newer", "cut")
#: It goes on after these, and so does the job.
GOES_ON = ("rank", "rank", "screen", "reports", "socket", "moved", "log")
FAULTS = ENDS + GOES_ON
#: These need a disk of their own.
ON_DISK = ("disk", "read-only")
#: For whatever ends soon where the machine is not loaded.
PATIENCE_S = 600.0
#: An event as no version writes it yet, and half of one.
NEWER = b'{"event":"quantum_leap","t":3.0,"attempt":1}\n'
CUT = b'{"event":"progress","t":1.2,"att\x00'


class Soak:
    """One soak in a folder of its own."""

    def __init__(self, place: Path, seed: int, steps: int, faults: tuple[str, ...]) -> None:
        self.place, self.random, self.steps = place, random.Random(seed), steps
        self.choice, self.faults = faults, Counter[str]()
        self.ends: Counter[str] = Counter()
        self.refusals = 0
        self.run = place / "oomguard-runs" / NAME
        self.began = time.monotonic()

    def go(self, seconds: float) -> None:
        """Do harm until the time is over, then let it train to its end."""
        while self.start() != 0:
            pass_on = time.monotonic() - self.began < seconds
            code = self.wait_with_faults() if pass_on else self.process.wait()
            self.ends[LAST_CODES.get(code, str(code))] += 1
            if code == 0:
                return
            if code not in LAST_CODES:
                raise SystemExit(f"oomguard ended with {code}: see {self.place}")

    def start(self) -> int:
        events = self.run / "events.jsonl"
        if events.exists() and b"\n" in events.read_bytes():
            words = ["resume", str(self.run)]
        else:
            shutil.rmtree(self.run, ignore_errors=True)
            job = [sys.executable, str(HERE / "elastic.py"), "--output_dir", "out"]
            flags = ["--max_steps", str(self.steps), "--save_steps", "5", "--step_seconds", "0.05"]
            words = ["launch", "--name", NAME, "--grace", "5", "--", *job, *flags]
        with (self.place / "said.txt").open("ab") as said:
            self.screen = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=said)
        assert self.screen.stdin is not None
        with self.screen.stdin as shown:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "oomguard", *words],
                cwd=self.place, stdout=shown, stderr=shown, start_new_session=True,
                env={**os.environ, "XDG_DATA_HOME": str(self.place / "data"),
                     "OOM_ABOVE": "2", "OOM_AT": "40", "SAVES_ON": "SIGUSR1"},
            )  # fmt: skip
        return 1

    def wait_with_faults(self) -> int:
        """Wait for its end; after a while something happens."""
        wait_s = self.random.uniform(0.2, 6.0)
        try:
            return self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            fault = self.random.choice(self.choice)
            self.faults[fault] += 1
            getattr(self, "do_" + fault.replace("-", "_"))()
        try:
            return self.process.wait(0.1 if fault in GOES_ON else PATIENCE_S)
        except subprocess.TimeoutExpired:
            return self.wait_with_faults()

    def do_kill(self) -> None:
        self.process.kill()

    def do_kill_all(self) -> None:
        for child in psutil.Process(self.process.pid).children():
            if "watchdog.py" in " ".join(child.cmdline()):
                child.kill()
        self.process.kill()

    def do_stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def do_warn(self) -> None:
        self.process.send_signal(signal.SIGUSR1)

    def do_rank(self) -> None:
        ranks = [pid for pid in self.marked() if b"RANK=0" in environ(pid)]
        if ranks:
            os.kill(self.random.choice(ranks), signal.SIGKILL)

    def do_disk(self) -> None:
        """Fill the disk, kill oomguard half the time, make room again."""
        ballast = self.run.parent / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(b"\0" * (1 << 20)):
                    pass
            except OSError:
                time.sleep(self.random.uniform(0.1, 2.0))
        if self.random.random() < 0.5:
            self.process.kill()
        ballast.unlink()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def do_read_only(self) -> None:
        """End oomguard, and resume on a read-only disk: it refuses and changes nothing."""
        self.do_stop()
        self.process.wait(PATIENCE_S)
        events = self.run / "events.jsonl"
        before = events.read_bytes() if events.exists() else None
        runs = str(self.run.parent)
        if subprocess.run(["mount", "-o", "remount,ro", runs], check=False).returncode != 0:
            return  # something still has a file open there
        try:
            self.refused("Read-only file system")
        finally:
            subprocess.run(["mount", "-o", "remount,rw", runs], check=True)
        assert before is None or events.read_bytes() == before

    def do_newer(self) -> None:
        """Kill oomguard and add an event that it does not know: it refuses and changes nothing."""
        self.do_kill()
        self.process.wait()
        events = self.run / "events.jsonl"
        before = events.read_bytes() if events.exists() else b""
        whole = before[: before.rfind(b"\n") + 1]
        if not whole:
            return
        events.write_bytes(whole + NEWER)
        self.refused("another version of oomguard has written this run")
        assert events.read_bytes() == whole + NEWER
        events.write_bytes(before)

    def do_cut(self) -> None:
        self.do_kill()
        self.process.wait()
        events = self.run / "events.jsonl"
        if events.exists():
            with events.open("ab") as file:
                file.write(CUT)

    def refused(self, why: str) -> None:
        """Resume where that cannot be; it has to end with a usage error that says why."""
        done = subprocess.run(
            [sys.executable, "-m", "oomguard", "resume", str(self.run)],
            cwd=self.place, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert why in done.stderr or not (self.run / "events.jsonl").exists(), done.stderr
        self.refusals += why in done.stderr
        assert "Traceback" not in done.stderr

    def do_screen(self) -> None:
        self.screen.kill()

    def do_reports(self) -> None:
        """Send the reporter's socket what it cannot read: noise, other types, an endless line."""
        odd = [
            self.random.randbytes(5000) + b"\n",
            b'{"v": 1, "type": "step", "pid": "x"}\n',
            b'{"v": 1, "type": "phase", "extra": "\\ud800"}\n',
            b"[" * 60_000 + b"\n",
            b"x" * 1_000_000,
        ]
        for path in self.sockets():
            with suppress(OSError), socket.socket(socket.AF_UNIX) as reporter:
                reporter.connect(str(path))
                reporter.sendall(self.random.choice(odd))

    def do_socket(self) -> None:
        for path in self.sockets():
            path.unlink(missing_ok=True)

    def sockets(self) -> list[Path]:
        notes = self.run.glob(f"attempts/*/{SOCKET_FILE}")
        return [Path(note.read_text()) for note in notes]

    def do_moved(self) -> None:
        """Move the run folder away for a while."""
        aside = self.run.with_name("aside")
        if self.run.exists():
            self.run.rename(aside)
            time.sleep(self.random.uniform(0.1, 3.0))
            assert not self.run.exists(), "a folder was made in the place of the one that was moved"
            aside.rename(self.run)

    def do_log(self) -> None:
        for log in sorted(self.run.glob("attempts/*/log.txt"))[-1:]:
            log.unlink()

    def marked(self) -> list[int]:
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if (mark_of(pid) or "").startswith(f"{NAME}-")]

    def check(self) -> dict[str, object]:
        """Return what came of it; raise AssertionError where something was lost."""
        history = parse_history(BytesIO((self.run / "events.jsonl").read_bytes()), "")
        record = history.record
        report = json.loads((self.run / "fit-report.json").read_text())
        rows = [json.loads(x) for x in (self.place / "out/ledger.jsonl").read_text().splitlines()]
        done = Counter(row["step"] for row in rows)
        assert record.status == "fit" == report["status"]
        assert history.cut_bytes == 0
        assert [a.number for a in record.attempts] == [*range(1, len(record.attempts) + 1)]
        assert len(report["attempts"]) == len(record.attempts)
        assert all(a.verdict is not None for a in record.attempts)
        assert set(done) == set(range(1, self.steps + 1)), "a step was left out"
        assert {row["batch"] for row in rows} == {8}, "the global batch was changed"
        assert (self.place / "out/final.txt").read_text() == trained(self.steps)
        assert self.marked() == []
        assert not self.sockets(), "a socket was left behind"
        kinds = Counter(a.verdict.kind.value for a in record.attempts if a.verdict)
        return {
            "seconds": round(time.monotonic() - self.began),
            "faults": dict(sorted(self.faults.items())),
            "ends_of_oomguard": dict(sorted(self.ends.items())),
            "resumes_refused": self.refusals,
            "attempts": len(record.attempts),
            "verdicts": dict(sorted(kinds.items())),
            "steps": self.steps,
            "steps_done_again": sum(done.values()) - len(done),
            "weights_as_if_nothing_had_happened": True,
        }


def environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="oomguard-soak-"))
    runs = place / "oomguard-runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(runs)]
    small = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    faults = tuple(fault for fault in FAULTS if small or fault not in ON_DISK)
    soak = Soak(place, given.seed, steps=int(given.seconds * 14), faults=faults)
    soak.go(given.seconds)
    result = {"seed": given.seed, "small_disk": small, **soak.check()}
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if small:
        subprocess.run(["umount", str(runs)], check=True)
    shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
