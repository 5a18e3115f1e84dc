"""A model repository that brings its own code: no prediction and no launch of ours runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from environments import environment

from shapes import LLAMA_1B

#: Run wherever it is imported: by a config, a model or a tokenizer of this repository.
EVIL = "from pathlib import Path\nPath({mark!r}).touch()\n"
CODE = {
    "configuration_evil.py": "class EvilConfig: pass\n",
    "modeling_evil.py": "class EvilModel: pass\n",
    "tokenization_evil.py": "class EvilTokenizer: pass\n",
}
BY_AUTO_MAP = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModel": "modeling_evil.EvilModel",
    "AutoModelForCausalLM": "modeling_evil.EvilModel",
}
TOKENIZER = {"auto_map": {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]}}
TRAIN = """
model_name_or_path: {model}
trust_remote_code: true
stage: sft
finetuning_type: lora
dataset: ../data.json
template: llama3
cutoff_len: 256
per_device_train_batch_size: 2
output_dir: out
"""


def repository(folder: Path, model_type: str) -> Path:
    """Write a model repository without weights, all of whose code leaves a mark."""
    model = folder / "model"
    model.mkdir()
    config = LLAMA_1B | {"num_hidden_layers": 2, "model_type": model_type, "auto_map": BY_AUTO_MAP}
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (model / "tokenizer.json").write_text("{}")
    for name, code in CODE.items():
        (model / name).write_text(EVIL.format(mark=str(folder / "mark")) + code)
    (folder / "data.json").write_text(json.dumps([{"instruction": "a", "output": "b"}] * 8))
    (folder / "train.yaml").write_text(TRAIN.format(model=model))
    return model


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_a_prediction_runs_no_code_of_the_repository(tmp_path, model_type):
    repository(tmp_path, model_type)
    words = ("plan", "train.yaml", "--gpu-memory", "24GiB", "--python", str(environment("hf")))
    done = subprocess.run(
        [sys.executable, "-m", "oomguard", *words, "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert not (tmp_path / "mark").exists()
    if model_type == "llama":  # the class of transformers is traced
        assert done.returncode == 0, done.stderr
        estimate = json.loads(done.stdout)["asked"]["estimate"]
        assert estimate["method"].startswith("trace")
        assert estimate["allocated_bytes"] > 0
    assert "internal error" not in done.stderr


def test_the_code_would_run_if_it_were_loaded(tmp_path):
    """The repository is as dangerous as it looks."""
    model = repository(tmp_path, "evil")
    load = "import sys, transformers as t; t.AutoConfig.from_pretrained({model!r}, {trust})"
    code = load.format(model=str(model), trust="trust_remote_code=True")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    subprocess.run([str(environment("hf")), "-c", code], env=env, capture_output=True, check=False)
    assert (tmp_path / "mark").exists()
