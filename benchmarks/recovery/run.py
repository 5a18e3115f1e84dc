"""Compare ways to recover from an OOM, on one fine-tuning job in three situations.

    make recovery TURNS=1

In each turn and situation every contestant starts the job once, in an order that turns, under a
real limit on its memory (RLIMIT_DATA) in which a micro batch of 4 fits and one of 8 does not. Runs
under a limit that is never reached are what the others are compared with. All figures are made
from the event log that the job itself writes (`events.py`, `figures.py`); the harness adds a line
before it starts a contestant. Every log goes to result.json.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import read, row, table

HERE = Path(__file__).resolve().parent
FRAMEWORKS = HERE.parents[1] / "tests" / "frameworks"
sys.path.insert(0, str(FRAMEWORKS))
import platformdirs  # noqa: E402
from caps import peak_data_bytes  # noqa: E402
from environments import environment  # noqa: E402
from jobs import TinyJob, hf_job  # noqa: E402  the model and environment that the tests use
from launched import OOMGUARD, again  # noqa: E402
from peak_memory import RETURN_FREED  # noqa: E402

GLOBAL_BATCH = 16
LONG = 256
TIMEOUT_SECONDS = 360
#: A limit that is never reached, as a multiple of the one that is.
AMPLE = 4

#: What the flags of each situation are, and what the job does when it is past its OOM.
SITUATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fixed": (
        "step",
        ("--samples", "64", "--per_device_train_batch_size", "16"),
    ),
    "outlier": (
        "step",
        (
            *("--samples", "336", "--length", "16", "--outlier_at", "216"),
            *("--per_device_train_batch_size", "16"),
        ),
    ),
    "evaluation": (
        "evaluated",
        (
            *("--samples", "64", "--per_device_train_batch_size", "4"),
            *("--gradient_accumulation_steps", "4", "--per_device_eval_batch_size", "16"),
            *("--eval_strategy", "steps", "--eval_steps", "2"),
        ),
    ),
}
FLAGS = (
    *("--model_name_or_path", "model", "--output_dir", "out", "--num_train_epochs", "1"),
    *("--train_sampling_strategy", "sequential", "--learning_rate", "1e-3"),
    *("--lr_scheduler_type", "constant", "--use_cpu", "True", "--report_to", "none"),
    *("--save_strategy", "steps", "--save_steps", "5", "--disable_tqdm", "True"),
)


def script(name: str, job: TinyJob) -> tuple[str, ...]:
    return str(job.python), str(HERE / name)


def oomguard(*flags: str) -> Callable[[TinyJob, int], tuple[str, ...]]:
    """Return how oomguard is started: it sets the limit itself, and knows of it."""
    return lambda job, limit: (
        *OOMGUARD, "launch", *flags, "--host-memory", str(limit), "--", *script("job.py", job)
    )  # fmt: skip


def module(*words: str) -> Callable[[TinyJob, int], tuple[str, ...]]:
    return lambda job, _: (str(job.python), *words, str(HERE / "job.py"))


def plain(name: str) -> Callable[[TinyJob, int], tuple[str, ...]]:
    return lambda job, _: script(name, job)


def lent(name: str) -> Callable[[TinyJob, int], tuple[str, ...]]:
    """Return the command of a script in the environment of the other frameworks."""
    return lambda _, __: (str(environment("recovery")), str(HERE / name))


AUTO = ("--auto_find_batch_size", "True")
#: How each is started: the command, and flags of the job besides those of the situation.
CONTESTANTS: dict[str, tuple[Callable[[TinyJob, int], tuple[str, ...]], tuple[str, ...]]] = {
    "never ran out": (plain("job.py"), ()),
    "oomguard": (oomguard(), ()),
    "oomguard --no-in-place": (oomguard("--no-in-place"), ()),
    "auto_find_batch_size": (plain("job.py"), AUTO),
    "find_executable_batch_size": (plain("accelerate_finder.py"), ()),
    "halving loop": (plain("halving.py"), ()),
    "torchrun --max-restarts 3": (
        module("-m", "torch.distributed.run", "--max-restarts", "3"),
        (),
    ),
    "NVRx ft_launcher --max-restarts 3": (
        lambda _, __: (
            *(str(environment("recovery")), "-m", "nvidia_resiliency_ext.fault_tolerance.launcher"),
            *("--ignore-missing-fault-tol-cfg", "--max-restarts", "3", str(HERE / "job.py")),
        ),
        (),
    ),
    "Lightning, never ran out": (lent("lightning_finder.py"), ("--output_dir", "whole")),
    "Lightning's finder, accumulating": (lent("lightning_finder.py"), ()),
}
#: What sets the limit itself, in its own way.
LIMITS_ITSELF = ("oomguard", "oomguard --no-in-place")
WHOLE = ("never ran out", "Lightning, never ran out")


def cap_bytes(made: TinyJob, folder: Path) -> int:
    """Return the limit under which a micro batch of 4 fits and one of 8 does not: measured once."""
    what = (FLAGS, str(made.python), platform.uname(), os.cpu_count())
    digest = hashlib.sha256(repr(what).encode()).hexdigest()[:12]
    kept = platformdirs.user_cache_path("oomguard") / "caps" / f"recovery-{digest}.json"
    if not kept.exists():
        peaks = {}
        for micro in (4, 8):
            job = again(made, Path(tempfile.mkdtemp(dir=folder)))
            words = (
                *script("job.py", job), *FLAGS, "--event_log", str(job.folder / "events.jsonl"),
                "--samples", "16", "--per_device_train_batch_size", str(micro),
                "--gradient_accumulation_steps", str(GLOBAL_BATCH // micro),
            )  # fmt: skip
            peaks[micro] = peak_data_bytes(words, cwd=job.folder, env=job.env)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(peaks))
    return sum(json.loads(kept.read_text()).values()) // 2


def measure(made: TinyJob, name: str, situation: str, cap: int, keep: Path) -> dict[str, Any]:
    """Start a contestant once in a folder of its own, and return the job's events."""
    command, extra = CONTESTANTS[name]
    limit = cap * AMPLE if name in WHOLE else cap
    with tempfile.TemporaryDirectory(prefix="oomguard-") as folder:
        job = again(made, Path(folder))
        log = Path(folder) / "events.jsonl"
        words = (*command(job, limit), *FLAGS, *SITUATIONS[situation][1], *extra)
        log.write_text(json.dumps({"event": "launched", "at": time.monotonic()}) + "\n")
        used = spent()
        output, code = started(
            (*words, "--event_log", str(log)), job, limit, outside=name not in LIMITS_ITSELF
        )
        events = read(log.read_text())
        (keep / f"{situation}-{name.replace(' ', '_')}.log").write_text(output)
    return {
        "code": code,
        "cpu_seconds": spent() - used,
        "load": os.getloadavg()[0],
        "events": events,
    }


def started(
    words: tuple[str, ...], job: TinyJob, limit: int, *, outside: bool
) -> tuple[str, int | None]:
    """Run a command under the limit, and return its output and exit code; None if it took long."""
    with subprocess.Popen(
        words,
        cwd=job.folder,
        env={**job.env, **RETURN_FREED, "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        if outside:
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))
        try:
            output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 15)
            output, _ = process.communicate()
            return output, None
    return output, process.returncode


def machine() -> dict[str, Any]:
    """Return what was measured on, and with which versions."""
    ask = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"
    wanted = {
        "hf": ["torch", "transformers", "accelerate"],
        "recovery": ["torch", "transformers", "lightning", "nvidia-resiliency-ext"],
    }
    versions = {
        name: json.loads(
            subprocess.check_output([environment(name), "-c", ask % packages], text=True)
        )
        for name, packages in wanted.items()
    }
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {"oomguard": importlib.metadata.version("oomguard"), **versions},
    }


def report(runs: list[dict[str, Any]]) -> str:
    """Return a table for each situation."""
    parts = []
    for situation, (hurdle, _) in SITUATIONS.items():
        of = [run for run in runs if run["situation"] == situation]
        events = {(run["turn"], run["contestant"]): run["events"] for run in of}
        for run in of:
            whole = events[run["turn"], whole_of(run["contestant"])]
            run["row"] = row(run["events"], whole, hurdle=hurdle, width=LONG, samples=GLOBAL_BATCH)
        names = {name: whole_of(name) for name in CONTESTANTS}
        parts.append(f"## {situation}\n\n{table(of, names, GLOBAL_BATCH)}\n")
    return "\n".join(parts)


def whole_of(name: str) -> str:
    """Return the run that never ran out, of the same framework."""
    return WHOLE[name.startswith("Lightning")]


def spent() -> float:
    """Return the CPU time of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure all contestants in turns, and keep every log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--first-turn", type=int, default=0, help="after turns measured before")
    parser.add_argument("--only", nargs="*", default=[*CONTESTANTS])
    parser.add_argument("--situations", nargs="*", default=[*SITUATIONS])
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    parser.add_argument("--keep", type=Path, help="folder for what each contestant printed")
    parser.add_argument("--table", action="store_true", help="only print the tables of --out")
    options = parser.parse_args()
    if not options.table:
        measure_all(options)
    print(report(json.loads(options.out.read_text())["runs"]))


def measure_all(options: argparse.Namespace) -> None:
    """Start each contestant once in each turn and situation; what has been measured is kept."""
    with tempfile.TemporaryDirectory(prefix="oomguard-") as folder:
        keep = options.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        made = hf_job(Path(folder) / "made")
        cap = cap_bytes(made, Path(folder))
        about = {"machine": machine(), "cap_bytes": cap}
        runs: list[dict[str, Any]] = []
        for turn in range(options.first_turn, options.first_turn + options.turns):
            for situation in options.situations:
                shift = turn % len(options.only)
                for name in [*options.only[shift:], *options.only[:shift]]:
                    found = measure(made, name, situation, cap, keep)
                    runs.append({"turn": turn, "situation": situation, "contestant": name, **found})
                    options.out.write_text(json.dumps({**about, "runs": runs}) + "\n")
                    print(situation, name, found["code"], len(found["events"]), flush=True)


if __name__ == "__main__":
    main()
