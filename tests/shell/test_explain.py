"""What `oomguard explain` says to do next, and how it reads a folder of logs."""

from __future__ import annotations

import gzip
import json

import pytest

from oomguard.cli.main import main

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
