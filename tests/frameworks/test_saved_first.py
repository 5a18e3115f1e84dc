"""An evaluation that runs out of memory where a checkpoint is due in the same step."""

from __future__ import annotations

import json

import pytest
from environments import environment

from monitored_job import run_job

SCRIPT = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

class Evaluates(Trainer):
    def prediction_step(self, *args, **others):
        held = torch.ones(1 << 20)
        if self.state.global_step == 5:
            torch.ones(1 << 44)  # more than any machine has
        return super().prediction_step(*args, **others)

config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
model = LlamaForCausalLM(config)
data = [{'input_ids': [1] * 8, 'labels': [1] * 8}] * 16
save_steps, resume = int(sys.argv[1]), (sys.argv[2:] or [None])[0]
arguments = TrainingArguments('out', per_device_train_batch_size=2, max_steps=6,
    eval_strategy='steps', eval_steps=1, save_steps=save_steps, learning_rate=0.01,
    report_to=[], use_cpu=True, disable_tqdm=True)
kind = Trainer if resume else Evaluates
kind(model, arguments, train_dataset=data, eval_dataset=data).train(resume_from_checkpoint=resume)
"""


def job(folder, *words):
    python = environment("hf")
    env = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    code = f"import sys; sys.argv[1:] = {list(words)!r}\n{SCRIPT}"
    return run_job(folder, code, python=python, env=env, timeout_s=600)


@pytest.mark.parametrize(("save_steps", "kept"), [("5", [5]), ("2", [2, 4])])
def test_a_checkpoint_that_was_due_is_saved_before_the_error_goes_on(tmp_path, save_steps, kept):
    ended = job(tmp_path, save_steps)
    assert ended.code == 1
    assert "fault" not in ended.types
    assert ("eval", True) in [(oom["phase"], oom["uncaught"]) for oom in ended.of("oom")]
    found = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert found == [f"checkpoint-{step}" for step in kept]
    state = json.loads((tmp_path / "out" / found[-1] / "trainer_state.json").read_text())
    assert state["global_step"] == kept[-1]
    if save_steps == "5":
        again = job(tmp_path, save_steps, f"out/{found[-1]}")
        assert again.code == 0, again.err[-2000:]
        assert [line["step"] for line in again.of("step")][-1:] == [1]  # one step was left
