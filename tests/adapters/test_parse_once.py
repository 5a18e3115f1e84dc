"""Config or referenced file: each text is parsed once, however many methods read the job."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adapters.conftest import FOLDER
from oomguard.adapters.registry import adapter_named
from oomguard.cli.main import cli, main
from oomguard.configfile.document import Document, Source
from oomguard.job.training_job import Job

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
ZERO = json.dumps({"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}})
ACCELERATE = (
    "distributed_type: DEEPSPEED\nnum_processes: 2\n"
    "deepspeed_config: {deepspeed_config_file: z.json}\n"
)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """Count the parses of each text, by the name of its file."""
    counts: Counter[tuple[str, str]] = Counter()
    parse = Document.parse

    def counted(source: Source) -> Document:
        counts[Path(source.path).name, source.text] += 1
        return parse(source)

    monkeypatch.setattr(Document, "parse", counted)
    return counts


@pytest.mark.parametrize(
    "recipe",
    [
        "llamafactory/qwen2_5_vl.yaml",
        "litgpt/train.yaml",
        "torchtune/train.yaml",
        "hf_trainer/trl.yaml",
    ],
)
def test_a_plan_parses_each_text_of_the_config_once(
    recipe: str, parsed: Counter[tuple[str, str]]
) -> None:
    result = CliRunner().invoke(cli, ["plan", str(RECIPES / recipe), "--gpu", "a10"])
    assert parsed, result.output
    # Two texts at most: the file as loaded, and the same without its `oomguard:` block.
    assert len(parsed) <= 2
    assert set(parsed.values()) <= {1, 2}
    assert parsed.total() == 2


@pytest.mark.parametrize(
    ("name", "argv", "files"),
    [
        ("hf_trainer", "torchrun --nproc_per_node 2 t.py --deepspeed z.json", {"z.json": ZERO}),
        (
            "hf_trainer",
            "accelerate launch --config_file a.yaml t.py",
            {"a.yaml": ACCELERATE, "z.json": ZERO},
        ),
        (
            "trl",
            "trl sft --accelerate_config a.yaml",
            {"a.yaml": ACCELERATE, "z.json": ZERO},
        ),
        (
            "litgpt",
            "litgpt finetune_lora c --train.micro_batch_size 2",
            {"c/model_config.yaml": "block_size: 64\n"},
        ),
    ],
)
def test_each_referenced_file_is_parsed_once(
    bench: Callable[..., Any],
    parsed: Counter[tuple[str, str]],
    name: str,
    argv: str,
    files: dict[str, str],
) -> None:
    texts = {f"/home/me/project/{path}": text for path, text in files.items()}
    table = bench(adapter_named(name), gpus=2, files=texts)
    request = table.request(argv)
    table.adapter.referenced_files(request)
    job: Job = table.adapter.read(request)
    for _ in range(2):
        table.adapter.memory_settings(job)
        table.adapter.refusal(job, job.asked)
        table.adapter.checkpoint_layout(job)
        table.adapter.write(job, job.asked, FOLDER)
    assert parsed == {(Path(path).name, text): 1 for path, text in files.items()}


def test_a_launch_parses_what_the_user_wrote_once(
    parsed: Counter[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = (ROOT / "benchmarks" / "journeys" / "toy_job.py").read_text()
    (tmp_path / "train.py").write_text(toy)
    block = f"oomguard: {{command: [{sys.executable}, train.py], runs_dir: runs}}\n"
    own = "per_device_train_batch_size: 8\noutput_dir: out\ndeepspeed: z.json\n"
    (tmp_path / "x.yaml").write_text(block + own)
    (tmp_path / "z.json").write_text(ZERO)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    ladder = ["--ladder", "halve_micro_batch", "--no-predict"]
    assert main(["launch", "x.yaml", *ladder]) == 0
    attempts = sorted((tmp_path / "runs").glob("*/attempts/*"))
    assert len(attempts) == 2
    assert parsed["x.yaml", block + own] == 1
    assert parsed["x.yaml", "\n" + own] == 1
    assert parsed["z.json", ZERO] == 1
    # Each edit is checked by parsing what it wrote: two keys, for the attempt and for `final/`.
    assert parsed.total() <= 3 + 2 * 2
