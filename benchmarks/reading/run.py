"""Plan every training config of a checkout: `python benchmarks/reading/run.py DIR [--name NAME]`.

One row for each config file, and for each training command in a shell script or in the docstring
of an example script. The plans are made without a trace, for one A100 with 80 GB or for as many
as the job states. The table is named after the repository and the commit of the checkout.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import math
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "src"))

from oomguard.cli import plan_job  # noqa: E402  found through the path above
from oomguard.cli.main import main as oomguard  # noqa: E402

GPU = "a100-80"
#: Folders whose files configure the repository itself, its tests or its launchers.
SKIPPED = {".git", ".github", "tests", "test", ".circleci", "docker", "accelerate", "deepspeed"}
#: A YAML file with one of these keys names a model; it is a job's config.
MODEL_KEYS = {"model_name_or_path", "base_model", "model", "checkpoint_dir", "model_name"}
#: The programs that start a training in a shell script.
STARTS = re.compile(
    r"^(swift|megatron|llamafactory-cli|axolotl|litgpt|tune|trl|torchrun|deepspeed|accelerate"
    r"|python3?)$"
)
#: Commands of these frameworks that do not train, and programs that prepare data.
NO_TRAINING = re.compile(
    r"\b(infer|export|deploy|eval|app|rollout|sample|web-ui|chat|merge|preprocess|download"
    r"|convert|quantize|pip|install|setup|config|cp|ls|vllm-serve)\b|^python3? -c?( |$)"
    r"|^python3? (-m )?(\S*/)?(uvicorn|\w*_server\.py|start_\w+\.py)"
)
#: Words in front of a command that change nothing in it.
IGNORED = {"export", "nohup"}
ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Found:
    """A job as it stands in a repository: a config file or a command, and its environment."""

    file: Path
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("dir", type=Path)
    options.add_argument("--name", required=True, help="owner/name of the repository")
    options.add_argument("--commit", required=True)
    given = options.parse_args()
    plan_job.tracer_of = lambda *_, **__: None
    root = given.dir.resolve()
    table = [row(root, job) for job in jobs(root)]
    document = {"repository": given.name, "commit": given.commit, "gpu": GPU, "rows": table}
    target = HERE / "tables" / given.name.replace("/", "__")
    target.parent.mkdir(exist_ok=True)
    target.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    target.with_suffix(".md").write_text(report(document))
    print(summary(table))


def jobs(root: Path) -> Iterator[Found]:
    """Yield the jobs of a checkout in the order of their files."""
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if not path.is_file() or SKIPPED & set(parts[:-1]):
            continue
        if path.suffix in (".yaml", ".yml") and is_config(path):
            yield Found(path)
        elif path.suffix == ".sh":
            yield from commands(path, path.read_text(errors="replace"))
        elif path.suffix == ".py" and "examples" in parts:
            yield from commands(path, docstring(path))


def is_config(path: Path) -> bool:
    try:
        document = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(document, dict) and bool(MODEL_KEYS & set(document))


def docstring(path: Path) -> str:
    try:
        text = ast.get_docstring(ast.parse(path.read_text(errors="replace"))) or ""
    except SyntaxError:
        return ""
    return text


def commands(path: Path, text: str) -> Iterator[Found]:
    """Yield the training commands of a shell text, with the script's own variables filled in."""
    variables: dict[str, str] = {}
    for line in shell_lines(text):
        words = split(computed(line, variables))
        parts = [part for n, part in enumerate(words) if n > 0 or part not in IGNORED]
        filled = [word for part in parts for word in filled_in(part, variables)]
        start = next((n for n, part in enumerate(filled) if not ASSIGNMENT.match(part)), None)
        stated = (part.replace("\0", "#") for part in filled[:start])
        env = dict(part.split("=", 1) for part in stated if not re.search(r"\$[\d(]", part))
        if start is None:
            variables |= env
        elif STARTS.match(filled[start]) and not NO_TRAINING.search(" ".join(filled[start:][:3])):
            words = (word.replace("\0", "#") for word in until_shell(filled[start:]))
            yield Found(path, tuple(words), variables | env)


def split(line: str) -> list[str]:
    """Return the words of a line; a hash begins a comment only where a word could begin."""
    return shlex.split(re.sub(r"(?<=\S)#", "\0", line), comments=True)


def shell_lines(text: str) -> Iterator[str]:
    """Yield the lines of a shell script, continued ones and open quotes joined."""
    pending = ""
    for line in text.replace("\\\n", " ").splitlines():
        pending += line + "\n"
        try:
            split(pending)
        except ValueError:
            if pending.count("\n") < 20:
                continue
        else:
            yield pending
        pending = ""


def computed(text: str, variables: dict[str, str]) -> str:
    """Return a line of shell with its plain divisions computed: `$(expr 16 / $ranks)`."""

    def divided(found: re.Match[str]) -> str:
        words = re.split(r" */ *", found[1].strip())
        numbers = [variables.get(word.lstrip("$"), word) for word in words]
        if not all(word.isdigit() and int(word) for word in numbers):
            return found[0]
        first, *others = map(int, numbers)
        return str(first // math.prod(others))

    return re.sub(r"\$\((?:expr|\() *(\$?\w+(?: */ *\$?\w+)+) *\)+", divided, text)


def filled_in(part: str, variables: dict[str, str]) -> list[str]:
    """Return a word with the script's variables in it; a variable alone may be several words."""
    text = re.sub(
        r"\$\{?(\w+)(?::-?([^}]*))?\}?",
        lambda found: variables.get(found[1], found[2] or found[0]),
        part,
    )
    return text.split() if re.fullmatch(r"\$\w+", part) else [text]


def until_shell(parts: list[str]) -> list[str]:
    end = next((n for n, part in enumerate(parts) if part in ("|", "&", "&&", ";", ">")), None)
    return parts[:end]


def row(root: Path, job: Found) -> dict[str, Any]:
    """Plan a job where its repository runs it: in its root, or else beside the file."""
    start = time.monotonic()
    answer = plan(root, job)
    if "error" in answer and "cannot be read" in str(answer["error"]):
        answer = min(answer, plan(job.file.parent, job), key=lambda one: "error" in one)
    refusal = answer.get("error")
    asked = answer.get("asked", {})
    return {
        "file": str(job.file.relative_to(root)),
        "command": shlex.join(job.command) or None,
        "gpus": gpus(job),
        "framework": answer.get("framework"),
        "method": answer.get("method"),
        "trained": answer.get("trained"),
        "model": answer.get("model"),
        "fits": asked.get("fits"),
        "expected_bytes": (asked.get("estimate") or {}).get("expected_bytes"),
        "refusal": refusal
        and f"{refusal['what']}. {refusal['next'] or ''}".replace(str(root), "DIR").strip(),
        "unmodelled": [one["key"] for one in answer.get("unmodelled", [])],
        "notes": answer.get("notes", []),
        "seconds": round(time.monotonic() - start, 2),
    }


def plan(cwd: Path, job: Found) -> dict[str, Any]:
    words = ["--", *job.command] if job.command else [str(job.file)]
    out, before = io.StringIO(), dict(os.environ)
    os.environ.update(job.env)
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), \
            contextlib.redirect_stderr(io.StringIO()):  # fmt: skip
        try:
            oomguard(["plan", "--json", "--gpu", GPU, "--gpus", str(gpus(job)), *words])
        finally:
            os.environ.clear()
            os.environ.update(before)
    return json.loads(out.getvalue())


def gpus(job: Found) -> int:
    """Return how many GPUs a job states: in its environment, its launcher's flags or its file."""
    visible = job.env.get("CUDA_VISIBLE_DEVICES")
    words = " ".join(job.command).replace("=", " ")
    stated = re.search(r"--(?:nproc[_-]per[_-]node|num[_-]processes|num_gpus)\s+(\d+)", words)
    if stated or job.env.get("NPROC_PER_NODE", "").isdigit():
        return int(stated[1] if stated else job.env["NPROC_PER_NODE"])
    if not job.command:
        text = job.file.read_text()
        devices = yaml.safe_load(text).get("devices")
        noted = re.search(r"^#.*--nproc_per_node[= ](\d+)", text, re.MULTILINE)
        return devices if isinstance(devices, int) else int(noted[1]) if noted else 1
    return len(visible.split(",")) if visible else 1


def report(document: dict[str, Any]) -> str:
    lines = [
        f"# {document['repository']} at {document['commit'][:12]}\n",
        summary(document["rows"]),
        "| file | framework | method | trains | GPUs | verdict | GiB | not modelled | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for item in document["rows"]:
        peak = item["expected_bytes"]
        verdict = item["fits"] or item["refusal"] or ""
        cells = (
            item["file"], item["framework"], item["method"], (item["trained"] or {}).get("what"),
            item["gpus"], verdict, f"{peak / 2**30:.1f}" if peak else "",
            ", ".join(item["unmodelled"]), item["seconds"],
        )  # fmt: skip
        text = (str("" if cell is None else cell).replace("|", "\\|") for cell in cells)
        lines.append("| " + " | ".join(" ".join(cell.split()) for cell in text) + " |")
    return "\n".join(lines) + "\n"


def summary(table: list[dict[str, Any]]) -> str:
    counts = Counter(item["fits"] or "refused" for item in table)
    return (
        f"{len(table)} jobs: "
        + ", ".join(f"{number} {name}" for name, number in counts.most_common())
        + ".\n"
    )


if __name__ == "__main__":
    main()
