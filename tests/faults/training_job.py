"""A training job without a framework: the Trainer's flags, checkpoints and words, and a ledger.

Its "weights" are a hash over all steps: a step that is left out or done twice shows in them.
Faults are asked for by environment:

HOLD_AT=STEP        waits before this step, once, until the file `go` is there; `held` says so
OOM_ABOVE=N         says out of memory at step OOM_AT (1) where the micro batch is above N
OOM_HANGS=1         says so to the reporter's socket too, then neither ends nor listens to SIGTERM
SPLIT_AT=STEP       reports, as the monitor does, that this step ran out of memory and ran again in
                    parts; waits in the middle as at HOLD_AT
SAVES_ON="SIG..."   saves and leaves at these signals; takes SAVE_SECONDS (0)
DAEMON=1            leaves a daemon behind that holds the output open
RANKS=N             starts itself N times, each in a session of its own; the first one trains
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
START = "0" * 64


def main() -> int:
    if os.environ.get("DAEMON"):
        leave_a_daemon()
    if int(os.environ.get("RANKS", "1")) > 1 and "RANK" not in os.environ:
        return launch_ranks(int(os.environ["RANKS"]))
    if os.environ.get("RANK", "0") != "0":
        signal.pause()
    return train(arguments())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--per_device_train_batch_size", type=int, default=8)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--output_dir", default="out")
    parser.add_argument("--max_steps", type=int, default=8)
    parser.add_argument("--save_steps", type=int, default=2)
    parser.add_argument("--step_seconds", type=float, default=0.0)
    parser.add_argument("--resume_from_checkpoint")
    parser.add_argument("--model_name_or_path", help="Names a model; there is none.")
    return parser.parse_args()


def train(given: argparse.Namespace) -> int:
    out = Path(given.output_dir)
    out.mkdir(exist_ok=True)
    step, weights = load(given.resume_from_checkpoint)
    state = [step, weights]
    for name in os.environ.get("SAVES_ON", "").split():
        signal.signal(getattr(signal, name), lambda *_: save_and_leave(out, state))
    while step < given.max_steps:
        step += 1
        hold(step)
        shortage(step, given.per_device_train_batch_size)
        split(step)
        weights = follow(weights, step)
        note(out, step, given)  # first: a signal may save the state and end the job here
        state[:] = step, weights
        say(f"{{'loss': 1.0, 'step': {step}}}")
        if step % given.save_steps == 0:
            save(out, step, weights)
        time.sleep(given.step_seconds)
    (out / "final.txt").write_text(weights)
    say("{'train_runtime': 1.0}")
    return 0


def follow(weights: str, step: int) -> str:
    """Return the weights after one more step."""
    return hashlib.sha256(f"{weights} {step}".encode()).hexdigest()


def trained(steps: int) -> str:
    """Return the weights of a run in which nothing happened."""
    weights = START
    for step in range(1, steps + 1):
        weights = follow(weights, step)
    return weights


def say(text: str) -> None:
    print(text, flush=True)


def hold(step: int) -> None:
    if os.environ.get("HOLD_AT") == str(step):
        wait()


def wait() -> None:
    if not Path("held").exists():
        Path("held").touch()
        while not Path("go").exists():
            time.sleep(0.01)


def split(step: int) -> None:
    if os.environ.get("SPLIT_AT") != str(step):
        return
    report_shortage(step, uncaught=False)
    wait()
    send(
        "split", step, steps=1, failed=1, parts=2, rows=4, width=64, tokens=512, seconds=0.5,
        spans=[[step, step]],
    )  # fmt: skip


def shortage(step: int, micro: int) -> None:
    above, at = os.environ.get("OOM_ABOVE"), os.environ.get("OOM_AT", "1")
    if above is None or micro <= int(above) or step != int(at):
        return
    print(OOM, file=sys.stderr, flush=True)
    if os.environ.get("OOM_HANGS"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        report_shortage(step)
        while True:
            signal.pause()
    sys.exit(1)


def report_shortage(step: int, *, uncaught: bool = True) -> None:
    send(
        "oom", step, exception="torch.OutOfMemoryError", message=OOM, uncaught=uncaught, frames=[],
        memory=None, shapes=None, device="cuda", requested_bytes=2 << 30, capacity_bytes=None,
    )  # fmt: skip


def send(type_: str, step: int, **fields: object) -> None:
    """Send what the monitor would send, as docs/monitor-protocol.md has it."""
    line = {
        "v": 1, "type": type_, "pid": os.getpid(), "rank": None, "local_rank": None,
        "world": None, "t": time.monotonic(), "phase": "forward", "step": step - 1, **fields,
    }  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as reporter:
        reporter.connect(os.environ["OOMGUARD_SOCKET"])
        reporter.sendall(json.dumps(line).encode() + b"\n")


def note(out: Path, step: int, given: argparse.Namespace) -> None:
    micro, accumulation = given.per_device_train_batch_size, given.gradient_accumulation_steps
    with (out / "ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps({"step": step, "micro": micro, "batch": micro * accumulation}))
        ledger.write("\n")


def save(out: Path, step: int, weights: str) -> None:
    """Write a checkpoint as the Trainer does: its state last, then old ones go."""
    folder = out / f"checkpoint-{step}"
    if folder.exists():  # of a run that was killed; a half of each would not be told from a whole
        shutil.rmtree(folder)
    folder.mkdir()
    data = weights.encode()
    header = json.dumps({"w": {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    (folder / "optimizer.bin").write_bytes(b"\x80" + data)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    for old in out.glob("checkpoint-*"):
        if int(old.name.partition("-")[2]) < step - 6:
            shutil.rmtree(old)


def load(folder: str | None) -> tuple[int, str]:
    if folder is None:
        return 0, START
    weights = Path(folder, "model.safetensors").read_bytes()[-64:].decode()
    return json.loads(Path(folder, "trainer_state.json").read_text())["global_step"], weights


def save_and_leave(out: Path, state: list) -> None:
    Path("saving").touch()
    time.sleep(float(os.environ.get("SAVE_SECONDS", "0")))
    Path("saving").touch()
    time.sleep(float(os.environ.get("SAVE_SECONDS", "0")))
    save(out, *state)
    sys.exit(0)


def launch_ranks(count: int) -> int:
    """End as the first rank does; the others wait for it for ever, as in a collective."""
    ranks = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            env={**os.environ, "RANK": str(rank)},
            start_new_session=True,
        )
        for rank in range(count)
    ]
    code = ranks[0].wait()
    for other in ranks[1:]:
        other.terminate()
        other.wait()
    return code


def leave_a_daemon() -> None:
    if "RANK" in os.environ or os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.execvp("sleep", ["sleep", "600"])


if __name__ == "__main__":
    sys.exit(main())
