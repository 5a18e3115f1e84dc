"""What `oomguard explain` says to do next, and how it reads a folder of logs."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys

import pytest

from oomguard.adapters.examples import example_of
from oomguard.adapters.in_logs import framework_in_log
from oomguard.adapters.registry import ADAPTERS, adapter_named
from oomguard.cli.main import main
from oomguard.cli.spelled_changes import spelled
from oomguard.ladder.load import load_strategies

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
PEER = "ConnectionResetError: [Errno 104] Connection reset by peer\n"


def explained(capsys, *words):
    assert main(("explain", *map(str, words))) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "code", "steps"),
    [
        (OOM, 1, ["halve_micro_batch: ", "oomguard launch --ladder "]),
        ("", -9, ["to be sure: dmesg"]),
        ("ValueError: No available memory for the cache blocks.\n", 1, ["vllm_enable_sleep_mode"]),
    ],
)
def test_the_text_ends_with_what_to_do_next(tmp_path, capsys, text, code, steps):
    (tmp_path / "log").write_text(text)
    shown = explained(capsys, tmp_path / "log", f"--exit-code={code}")
    _, after = shown.split("next:\n")
    assert all(step in after for step in steps)


def test_a_failure_of_another_kind_leaves_nothing_to_do(tmp_path, capsys):
    (tmp_path / "log").write_text("ValueError: no\n")
    assert "next:" not in explained(capsys, tmp_path / "log", "--exit-code=1")


def test_an_oom_while_saving_is_not_answered_with_the_micro_batch(tmp_path, capsys):
    frame = '  File "/x/site-packages/transformers/trainer.py", line 3, in _save_checkpoint\n'
    (tmp_path / "log").write_text("Traceback (most recent call last):\n" + frame + OOM)
    shown = explained(capsys, tmp_path / "log", "--exit-code=1")
    assert "phase      save" in shown
    assert "halve_micro_batch" not in shown


@pytest.mark.parametrize(
    "names", [("rank0.log", "rank3.log.gz"), ("attempt_0/0/stderr.log", "attempt_0/3/stderr.log")]
)
def test_a_folder_of_rank_logs_is_one_story_with_one_root(tmp_path, capsys, names):
    texts = ("step 1 loss 2.5\n" + PEER, "step 1 loss 2.5\n" + OOM)
    for name, text in zip(names, texts, strict=True):
        path = tmp_path / "logs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    document = json.loads(explained(capsys, "--json", tmp_path / "logs"))
    assert (document["kind"], document["rank"]) == ("device_oom", 3)
    places = [(row["file"], row["line"]) for row in document["evidence"]]
    assert places[0] == (names[1], 2)
    assert (names[0], 2) in places


def test_an_empty_folder_is_an_error_that_says_so(tmp_path, capsys):
    assert main(("explain", str(tmp_path))) == 2
    assert "no log in it" in capsys.readouterr().err


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_stdin_is_read_as_a_file_is(tmp_path, capsys, monkeypatch, pack):
    data = pack(f"step 1 loss 2.5\n{OOM}".encode())
    (tmp_path / "log").write_bytes(data)
    as_file = explained(capsys, "--json", tmp_path / "log")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
    assert explained(capsys, "--json", "-") == as_file
    assert json.loads(as_file)["evidence"][0]["line"] == 2


def test_a_format_that_cannot_be_read_names_the_command_that_can(tmp_path, capsys, monkeypatch):
    data = io.BufferedReader(io.BytesIO(b"(\xb5/\xfd" + b"x" * 9))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    assert main(("explain", "-")) == 2
    assert "zstd -dc LOG | oomguard explain -" in capsys.readouterr().err


def test_weights_and_indexes_beside_the_logs_are_no_logs(tmp_path, capsys):
    # What torchrun and a trainer leave in one folder; the weights hold the words by chance.
    (tmp_path / "model.safetensors").write_bytes(b"\0\x10" + OOM.encode() * 3)
    (tmp_path / ".cache").write_text(OOM)
    (tmp_path / "rank1.log").write_bytes(f"ValueError: no\n{PEER}".encode("utf-16"))
    document = json.loads(explained(capsys, "--json", tmp_path))
    assert (document["kind"], document["rank"]) == ("not_oom", 1)
    assert {row["file"] for row in document["evidence"]} == {"rank1.log"}


FRAMES = {
    "llamafactory": "/app/src/llamafactory/train/sft/workflow.py",
    "axolotl": "/x/site-packages/axolotl/train.py",
    "litgpt": "/x/site-packages/litgpt/finetune/lora.py",
    "torchtune": "/x/site-packages/torchtune/training/checkpointing/_utils.py",
    "ms_swift": "C:\\x\\site-packages\\swift\\trainers\\mixin.py",
    "trl": "/x/site-packages/trl/scripts/sft.py",
    "hf_trainer": "/x/site-packages/transformers/trainer.py",
}
COMMANDS = {
    "llamafactory": "+ llamafactory-cli train sft.yaml",
    "axolotl": "$ axolotl train lora.yaml",
    "litgpt": "litgpt finetune_lora checkpoints/m",
    "torchtune": "tune run lora_finetune_single_device --config llama3_1/8B_lora_single_device",
    "ms_swift": "Running: swift sft --model Qwen/Qwen2.5-7B",
    "trl": "trl sft --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name d",
}
#: What `halve_micro_batch` sets from four samples at once, as each framework's users write it.
HALVED = {
    "llamafactory": "per_device_train_batch_size: 2, gradient_accumulation_steps: 8",
    "axolotl": "micro_batch_size: 2, gradient_accumulation_steps: 8",
    "litgpt": "train.micro_batch_size: 2",
    "torchtune": "batch_size: 2, gradient_accumulation_steps: 8",
    "ms_swift": "per_device_train_batch_size: 2, gradient_accumulation_steps: 8",
    "trl": "per_device_train_batch_size: 2, gradient_accumulation_steps: 8",
    "hf_trainer": "--per_device_train_batch_size 2, --gradient_accumulation_steps 8",
    "qwen": "--per_device_train_batch_size 2, --gradient_accumulation_steps 8",
}


@pytest.mark.parametrize("name", FRAMES)
def test_the_strategies_come_with_settings_of_the_framework_in_the_frames(tmp_path, capsys, name):
    frame = f'  File "{FRAMES[name]}", line 96, in run\n    train()\n'
    (tmp_path / "log").write_text(f"Traceback (most recent call last):\n{frame}{OOM}")
    shown = explained(capsys, tmp_path / "log")
    assert f"      {HALVED[name]}\n" in shown
    assert f"settings of {adapter_named(name).title}, for example" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_the_framework_is_told_by_its_command(name):
    found = framework_in_log(f"step 1\n{COMMANDS[name]}\nstep 2\n{OOM}")
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "text",
    ["", OOM, '  File "/home/trl/train.py", line 1, in f\n', "swift is fast\nlitgpt --version\n"],
)
def test_a_log_of_no_framework_gets_the_strategies_without_settings(tmp_path, capsys, text):
    assert framework_in_log(text) is None
    (tmp_path / "log").write_text(text + OOM)
    shown = explained(capsys, tmp_path / "log")
    assert "halve_micro_batch: " in shown
    assert "settings of" not in shown


def test_every_framework_has_an_example_or_is_a_script_of_its_own():
    assert {a.name for a in ADAPTERS if example_of(a) is None} == {"peft_loftq"}
    assert HALVED.keys() == {a.name for a in ADAPTERS} - {"peft_loftq"}


@pytest.mark.parametrize("name", HALVED)
def test_a_framework_that_is_named_decides(tmp_path, capsys, name):
    (tmp_path / "log").write_text(OOM)
    shown = explained(capsys, tmp_path / "log", "--framework", name)
    assert HALVED[name] in shown


@pytest.mark.parametrize("name", HALVED)
def test_what_a_strategy_sets_is_a_setting_and_leaves_the_others(name):
    adapter = adapter_named(name)
    job = example_of(adapter)
    assert job is not None
    settings = {strategy.id: spelled(strategy, adapter, job) for strategy in load_strategies()}
    # At most a handful each: a change of one field does not rewrite the config.
    assert all(len(rows) <= 4 for rows in settings.values())
    assert all("/attempt" not in row for rows in settings.values() for row in rows)
    assert sum(bool(rows) for rows in settings.values()) >= 3


def test_with_the_jobs_config_the_settings_are_its_own(tmp_path, capsys):
    config = tmp_path / "train.yaml"
    config.write_text(
        "base_model: m\ndatasets: [{path: d, type: alpaca}]\nsequence_len: 512\nadapter: lora\n"
        "lora_r: 8\nmicro_batch_size: 6\ngradient_accumulation_steps: 5\noutput_dir: out\n"
    )
    (tmp_path / "log").write_text(OOM)
    shown = explained(capsys, tmp_path / "log", "--config", config)
    assert "micro_batch_size: 3, gradient_accumulation_steps: 10" in shown
    assert "settings of axolotl, for this config" in shown


def test_an_unknown_framework_is_an_error_that_lists_them(tmp_path, capsys):
    (tmp_path / "log").write_text(OOM)
    assert main(("explain", str(tmp_path / "log"), "--framework", "axolot")) == 2
    assert "axolotl" in capsys.readouterr().err
