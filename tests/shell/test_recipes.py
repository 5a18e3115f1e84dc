"""Every file under recipes/ is planned, launched, or named by one that is: none is without a test.

Full-size recipes are planned here, by arithmetic, in a folder that holds a copy of recipes/ and
nothing else. Their tiny variants are read here, and launched for real in tests/frameworks, under
limits that are measured there.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from oomguard.cli.main import main
from oomguard.cli.prepare import load

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
#: Where each full-size recipe is planned for, its framework, and whether it fits as asked.
FULL = {
    "hf_trainer/script.yaml": ("--gpu 3090", "hf_trainer", "no"),
    "hf_trainer/trl.yaml": ("--gpu 3090", "trl", "no"),
    "litgpt/train.yaml": ("--gpu a10", "litgpt", "no"),
    "llamafactory/qwen2_5_vl.yaml": ("--gpu a100-80 --gpus 8", "llamafactory", "no"),
    "llamafactory/qwen2_audio.yaml": ("--gpu 3090", "llamafactory", "no"),
    "peft_loftq/train.yaml": ("--gpu a100-40 --host-memory 83.5GB", "peft_loftq", "no"),
    "qwen/train.yaml": ("--gpu a100-40 --gpus 2", "qwen", "yes"),
    "torchtune/train.yaml": ("--gpu 4090", "torchtune", "no"),
}
#: The test that launches each tiny variant.
TINY = {
    "hf_trainer/trl_tiny.yaml": ("test_trl_and_qwen.py", "test_trl_is_brought_to_its_end"),
    "litgpt/tiny.yaml": (
        "test_launch_litgpt.py",
        "test_it_runs_out_at_16_and_8_and_is_trained_at_4",
    ),
    "llamafactory/qwen2_5_vl_tiny.yaml": (
        "test_multimodal.py",
        "test_freezing_tower_and_projector_makes_the_job_fit",
    ),
    "llamafactory/qwen2_audio_tiny.yaml": (
        "test_multimodal.py",
        "test_an_audio_job_runs_out_then_trains_and_its_new_tokens_are_named",
    ),
    "peft_loftq/tiny.yaml": ("test_loftq.py", "test_at_once_it_runs_out_and_staged_it_trains"),
    "quickstart/train.yaml": (
        "test_quickstart.py",
        "test_it_really_runs_out_at_16_and_8_and_is_trained_in_parts_of_4",
    ),
    "qwen/tiny.yaml": ("test_trl_and_qwen.py", "test_qwens_flags_are_brought_to_their_end"),
    "torchtune/tiny.yaml": (
        "test_launch_torchtune.py",
        "test_lora_runs_out_at_8_and_is_trained_at_4",
    ),
}
#: What the recipes name: each file, and the recipe or script whose text names it.
PARTS = {
    "find_cap.py": "litgpt/tiny.yaml",
    "make_tiny.py": "litgpt/tiny.yaml",
    "peak_memory.py": "find_cap.py",
    "llamafactory/make_multimodal.py": "llamafactory/qwen2_5_vl_tiny.yaml",
    "peft_loftq/train.py": "peft_loftq/train.yaml",
    "peft_loftq/train_on_cpu.py": "peft_loftq/tiny.yaml",
    "quickstart/cap.py": "quickstart/run.py",
    "quickstart/make_assets.py": "quickstart/run.py",
    "quickstart/run.py": "../Makefile",
    "quickstart/train.py": "quickstart/train.yaml",
    "qwen/ds_config_zero2.json": "qwen/train.yaml",
    "qwen/finetune.py": "qwen/tiny.yaml",
}
FRAMEWORKS = ROOT / "tests" / "frameworks"


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(RECIPES, tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)


def test_every_file_has_its_test():
    found = {
        path.relative_to(RECIPES).as_posix()
        for path in RECIPES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == {*FULL, *TINY, *PARTS}


@pytest.mark.parametrize(("part", "named_in"), PARTS.items())
def test_a_part_is_named_where_it_is_used(part, named_in):
    assert Path(part).stem in (RECIPES / named_in).read_text()


@pytest.mark.parametrize(("name", "test"), TINY.items())
def test_a_tiny_variant_is_launched_by_the_test_that_the_table_names(name, test):
    file, function = test
    text = (FRAMEWORKS / file).read_text()
    assert function in {
        node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)
    }
    if file == "test_multimodal.py":
        text = (FRAMEWORKS / "multimodal.py").read_text()
    assert f'"{name}"' in text or Path(name).name in text


@pytest.mark.parametrize("name", FULL)
def test_a_full_size_recipe_is_planned_with_nothing_but_recipes(capsys, name):
    words, framework, fits = FULL[name]
    assert main(["plan", f"recipes/{name}", *words.split(), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["framework"] == framework
    assert document["asked"]["fits"] == fits
    assert document["chosen"] is not None or fits == "yes"


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_variant_is_read_with_nothing_but_recipes(capsys, name):
    assert main(["plan", f"recipes/{name}", "--gpu", "a10"]) == 2
    error = capsys.readouterr().err
    missing = {"litgpt/tiny.yaml": "tiny/litgpt/model", "quickstart/train.yaml": "quickstart/model"}
    expected = f"unknown model '{missing[name]}'" if name in missing else "runs on the CPU"
    assert expected in error


@pytest.mark.parametrize("name", [*FULL, *TINY])
def test_what_a_recipe_starts_or_tells_to_run_is_in_recipes(name):
    text = (RECIPES / name).read_text()
    command = yaml.safe_load(text).get("oomguard", {}).get("command", [])
    started = [argument for argument in command if argument.endswith(".py")]
    if name == "qwen/train.yaml":
        assert started == ["finetune.py"]  # of the checkout that its head names
        started = []
    head = text.split("\n\n")[0]
    for script in (*started, *re.findall(r"python (\S+\.py)", head)):
        assert Path(script).is_file(), script


def test_no_recipe_needs_the_tests():
    for path in Path("recipes").rglob("*.*"):
        assert not re.search(r"\btests\b", path.read_text()), path


def test_find_cap_measures_with_nothing_but_recipes():
    Path("job.py").write_text(
        "import sys, time\n"
        "last = len(sys.argv) - sys.argv[::-1].index('--per_device_train_batch_size')\n"
        "held = bytearray(int(sys.argv[last]) * 16 << 20)\n"
        "time.sleep(0.5)\n"
    )
    Path("job.yaml").write_text(
        f"oomguard: {{command: [{sys.executable}, job.py]}}\nper_device_train_batch_size: 16\n"
    )
    command = [sys.executable, "recipes/find_cap.py", "job.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    (cap_mib,) = re.fullmatch(r"--host-memory=(\d+)MiB\n", result.stdout).groups()
    assert 6 * 16 <= int(cap_mib) < 6 * 16 + 100  # between the peaks at 4 and at 8 samples


@pytest.mark.parametrize("script", ["make_tiny.py", "quickstart/make_assets.py"])
def test_a_script_starts_with_nothing_but_recipes(script):
    command = [sys.executable, f"recipes/{script}", "--help"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "rung", "why"),
    [
        ("llamafactory/qwen2_5_vl.yaml", "cut_cutoff_len", "a sample has is not known"),
        ("llamafactory/qwen2_5_vl.yaml", "chunk_long_texts", "a sample has is not known"),
        ("llamafactory/qwen2_audio.yaml", "train_new_rows", "trainable_token_indices"),
        ("llamafactory/qwen2_audio.yaml", "enable_qlora", "Cannot resize embedding layers"),
        ("litgpt/train.yaml", "chunk_long_texts", "no setting for overlong 'chunked'"),
        ("litgpt/train.yaml", "gradient_checkpointing", "the framework has no setting for it"),
    ],
)
def test_a_plan_says_why_a_strategy_is_skipped(capsys, name, rung, why):
    words = FULL[name][0].split()
    assert main(["plan", f"recipes/{name}", *words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (skipped,) = [row["skipped"] for row in document["rungs"] if row["strategy"] == rung]
    assert why in skipped


def test_the_text_of_a_plan_lists_reasons_where_it_is_verbose(capsys):
    command = ["plan", "recipes/litgpt/train.yaml", *FULL["litgpt/train.yaml"][0].split()]
    assert main([*command, "--verbose"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    reason = "train_new_rows: neither embedding nor output head is trained in full"
    assert f"- {reason}" in told
    assert main(command) == 0
    brief = " ".join(capsys.readouterr().out.split())
    assert reason not in brief
    assert brief.count("strategies do not apply; --verbose lists the reasons") == 1


def test_the_plan_of_a_config_that_fits_lists_the_ladder_where_it_is_verbose(capsys):
    command = ["plan", "recipes/qwen/train.yaml", *FULL["qwen/train.yaml"][0].split()]
    ladder = "Strategies in the order they are tried"
    assert main(command) == 0
    brief = capsys.readouterr().out
    assert "The requested config fits: " in brief
    assert ladder not in brief
    assert main([*command, "--verbose"]) == 0
    assert ladder in capsys.readouterr().out


def test_a_plan_is_read_from_the_top(capsys):
    command = ["plan", "recipes/litgpt/train.yaml", *FULL["litgpt/train.yaml"][0].split()]
    assert main(command) == 0
    told = capsys.readouterr().out
    places = [
        told.index("The requested config does not fit: "),
        told.index("It fits after strategy 3, cut_cutoff_len, "),
        told.index("requested config: micro batch 1, accumulation 8"),
        told.index("    weights "),
        told.index(" 1 expandable_segments: "),
        told.index("note: "),
    ]
    assert places == sorted(places)
    notes = [line for line in told.splitlines() if line.startswith("note: ")]
    assert len(notes) == len(set(notes))


def test_the_ladder_says_where_a_rung_is_passed_over(capsys):
    assert main(["ladder", "--ladder", "cut_cutoff_len"]) == 0
    assert "skipped if no sequence length is set" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*FULL, *TINY])
def test_the_head_of_a_recipe_says_what_to_type(name):
    head = (RECIPES / name).read_text().split("\n\n")[0]
    assert f"oomguard launch recipes/{name}" in head
    assert (f"oomguard plan recipes/{name}" in head) is (name in FULL)
    assert load(RECIPES / name).document
