"""The monitor in real PyTorch jobs, with real out-of-memory failures under RLIMIT_DATA."""

from __future__ import annotations

from pathlib import Path

import pytest
from environments import environment

from monitored_job import Ended, run_job

MIB = 1 << 20
SETUP = """
import resource, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
torch.set_num_threads(1)
hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
def leave_only(extra_bytes):
    status = open("/proc/self/status").read().split("VmData:")[1].split()
    limit = int(status[0]) * 1024 + extra_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
def lift():
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
def train(model, optimizer, x, backwards=1):
    for _ in range(backwards):
        model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
SMALL = """
model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
optimizer = torch.optim.AdamW(model.parameters())
x = torch.randn(8, 16)
"""
# 32 MiB of weights, and 256 MiB of output for `wide`: far from what 64 MiB of room can hold.
LARGE = """
model = nn.Linear(64, 4096)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x, wide = torch.randn(8, 64), torch.randn(16384, 64)
train(model, optimizer, x)
"""


def job(folder: Path, script: str, *, launcher: tuple[str, ...] = (), **env: str) -> Ended:
    env = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env}
    return run_job(
        folder, SETUP + script, python=environment("hf"), launcher=launcher, env=env, timeout_s=300
    )


def ooms(ended: Ended) -> list[tuple[str, bool]]:
    assert "fault" not in ended.types
    return [(oom["phase"], oom["uncaught"]) for oom in ended.of("oom")]


def test_a_training_loop_reports_its_phases_steps_and_batches(tmp_path):
    ended = job(
        tmp_path,
        SMALL + "loader = DataLoader(TensorDataset(torch.randn(24, 16)), batch_size=8)\n"
        "for (batch,) in loader: train(model, optimizer, batch)\n"
        "torch.save(model.state_dict(), 'model.pt')\n",
    )
    assert (ended.code, ended.err) == (0, "")
    assert ended.types[0] == "hello"
    assert ended.types[-1] == "bye"
    phases = [line["phase"] for line in ended.of("phase")]
    assert phases == ["batch", "forward", "backward", "optimizer", "save"]
    steps = ended.of("step")
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert steps[0]["shapes"] == {"0": [8, 16]}
    assert steps[0]["memory"]["cuda"] == []
    assert steps[0]["memory"]["rss_bytes"] > 50 * MIB


def test_an_oom_in_the_forward_pass(tmp_path):
    ended = job(tmp_path, LARGE + f"leave_only({64 * MIB}); train(model, optimizer, wide)")
    assert ooms(ended) == [("forward", True)]
    (oom,) = ended.of("oom")
    assert (oom["device"], oom["requested_bytes"], oom["step"]) == ("cpu", 16384 * 4096 * 4, 1)
    assert "DefaultCPUAllocator" in oom["message"]
    assert ended.code == 1


def test_an_oom_in_the_first_forward_pass_of_a_bare_loop(tmp_path):
    script = LARGE.replace("train(model, optimizer, x)", "")
    ended = job(tmp_path, script + f"leave_only({64 * MIB}); train(model, optimizer, wide)")
    assert ooms(ended) == [("forward", True)]


def test_an_oom_while_the_model_is_built_is_one_of_loading(tmp_path):
    ended = job(tmp_path, f"leave_only({64 * MIB}); nn.Linear(8192, 8192)")
    assert ooms(ended) == [("load", True)]


def test_an_oom_in_the_backward_pass(tmp_path):
    ended = job(
        tmp_path,
        LARGE + f"loss = model(wide).square().mean(); leave_only({64 * MIB}); loss.backward()",
    )
    assert ooms(ended) == [("backward", False), ("backward", True)]


@pytest.mark.parametrize("reentrant", ["True", "False"])
def test_an_oom_of_a_checkpointed_part_is_one_of_the_backward_pass(tmp_path, reentrant):
    ended = job(
        tmp_path,
        LARGE + "from torch.utils.checkpoint import checkpoint\n"
        "def part(x):\n"
        f"    if ran: leave_only({64 * MIB})\n"
        "    ran.append(1); return model(x).square().mean(1)\n"
        "ran = []\nwide.requires_grad_()\n"
        f"checkpoint(part, wide, use_reentrant={reentrant}).sum().backward()\n",
    )
    assert ooms(ended) == [("backward", False), ("backward", True)]


def test_an_oom_in_the_first_step_of_adamw(tmp_path):
    ended = job(
        tmp_path,
        "model = nn.Linear(4096, 4096)\noptimizer = torch.optim.AdamW(model.parameters())\n"
        f"model(torch.randn(2, 4096)).sum().backward()\nleave_only({32 * MIB}); optimizer.step()\n",
    )
    assert ooms(ended) == [("optimizer", False), ("optimizer", True)]
    assert [line["step"] for line in ended.of("oom")] == [0, 0]


def test_a_caught_oom_is_no_end_and_later_steps_count(tmp_path):
    ended = job(
        tmp_path,
        LARGE + f"loss = model(wide).square().mean(); leave_only({64 * MIB})\n"
        "try: loss.backward()\nexcept RuntimeError: lift()\n"
        "model.zero_grad(); train(model, optimizer, x); print('trained')\n",
    )
    assert (ended.code, ended.out) == (0, "trained\n")
    assert ooms(ended) == [("backward", False)]
    assert ended.lines[-1]["step"] == 2


def test_accumulated_gradients_make_one_step(tmp_path):
    ended = job(tmp_path, SMALL + "for _ in range(2): train(model, optimizer, x, backwards=4)")
    assert ended.lines[-1]["step"] == 2


def test_a_closure_of_lbfgs_makes_one_step(tmp_path):
    ended = job(
        tmp_path,
        SMALL + "optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)\n"
        "def closure():\n"
        "    optimizer.zero_grad(); loss = model(x).square().mean(); loss.backward(); return loss\n"
        "for _ in range(2): optimizer.step(closure)\n",
    )
    assert ended.lines[-1]["step"] == 2
    assert ended.code == 0


def test_compiled_models_and_optimizers_are_traced_without_the_hooks(tmp_path):
    ended = job(
        tmp_path,
        SMALL + "compiled = torch.compile(model, backend='eager', fullgraph=True)\n"
        "step = torch.compile(optimizer.step, backend='eager')\n"
        "for _ in range(3):\n"
        "    compiled(x).square().mean().backward(); step(); optimizer.zero_grad()\n"
        "train(compiled, optimizer, x)\n",
    )
    assert ended.code == 0, ended.err
    assert "fault" not in ended.types
    assert ended.lines[-1]["step"] == 1  # what a compiled optimizer does is not seen


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_loader_do_not_speak_for_the_job(tmp_path, method):
    script = SMALL + (
        "if __name__ == '__main__':\n"
        "    loader = DataLoader(TensorDataset(torch.randn(32, 16)), batch_size=8, num_workers=2,\n"
        f"                        multiprocessing_context='{method}')\n"
        "    for (batch,) in loader: train(model, optimizer, batch)\n"
    )
    ended = job(tmp_path, script)
    assert ended.code == 0, ended.err
    assert len({line["pid"] for line in ended.lines}) == 1
    assert ended.lines[-1]["step"] == 4


def test_an_oom_in_a_worker_is_told_by_the_worker_and_by_the_job(tmp_path):
    script = SMALL + (
        "class Data(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 1\n"
        f"    def __getitem__(self, i): leave_only({16 * MIB}); return torch.ones({64 * MIB})\n"
        "for batch in DataLoader(Data(), num_workers=1): pass\n"
    )
    ended = job(tmp_path, script)
    main = ended.lines[0]["pid"]
    told = [
        (o["pid"] == main, o["phase"], o["uncaught"], o["requested_bytes"]) for o in ended.of("oom")
    ]
    size = 4 * 64 * MIB
    assert told == [
        (False, "batch", False, size),
        (True, "batch", False, size),
        (True, "batch", True, size),
    ]


def test_each_of_two_ranks_reports_for_itself(tmp_path):
    script = (
        "import os\nimport torch.distributed as dist\n"
        "from torch.nn.parallel import DistributedDataParallel\n"
        "dist.init_process_group('gloo')\nrank = dist.get_rank()\n" + SMALL + "model = "
        "DistributedDataParallel(model)\nfor _ in range(3): train(model, optimizer, x)\n"
        f"dist.barrier()\nif rank == 1: leave_only({64 * MIB}); torch.ones({64 * MIB})\n"
        "dist.barrier()\n"
    )
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    ended = job(tmp_path, script, launcher=launcher)
    assert {(line["rank"], line["world"]) for line in ended.of("hello")} == {
        (None, None),
        (0, 2),
        (1, 2),
    }
    steps = {(line["rank"], line["local_rank"], line["step"]) for line in ended.of("step")}
    assert steps == {(rank, rank, step) for rank in (0, 1) for step in (1, 2, 3)}
    (oom,) = ended.of("oom")
    assert (oom["rank"], oom["uncaught"], oom["step"]) == (1, True, 3)
    assert ended.code == 1


def test_an_oom_of_a_process_that_torch_spawned_is_told_by_it_and_by_its_parent(tmp_path):
    script = (
        f"def worker(rank): leave_only({16 * MIB}); torch.ones({64 * MIB})\n"
        "if __name__ == '__main__': torch.multiprocessing.spawn(worker, nprocs=1)\n"
    )
    child, parent = job(tmp_path, script).of("oom")
    assert child["uncaught"] is parent["uncaught"] is True
    assert child["pid"] != parent["pid"]
    assert parent["exception"].endswith("ProcessRaisedException")
    assert child["frames"][-1].endswith(" worker")


def test_the_trainer_of_transformers_shows_its_phases(tmp_path):
    script = (
        "from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments\n"
        "config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,\n"
        "    num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)\n"
        "model = LlamaForCausalLM(config)\nmodel.save_pretrained('m')\n"
        "model = LlamaForCausalLM.from_pretrained('m')\n"
        "data = [{'input_ids': [1] * 8, 'labels': [1] * 8}] * 16\n"
        "arguments = TrainingArguments('out', per_device_train_batch_size=2, max_steps=4,\n"
        "    gradient_accumulation_steps=2, eval_strategy='steps', eval_steps=2, save_steps=2,\n"
        "    report_to=[], use_cpu=True, disable_tqdm=True)\n"
        "Trainer(model, arguments, train_dataset=data, eval_dataset=data).train()\n"
    )
    ended = job(tmp_path, script, HF_HUB_OFFLINE="1")
    assert ended.code == 0, ended.err
    phases = [line["phase"] for line in ended.of("phase")]
    first = [p for n, p in enumerate(phases) if p not in phases[:n]]
    assert first == ["save", "batch", "forward", "backward", "optimizer", "eval"]
    assert phases.count("eval") >= 1
    assert ended.lines[-1]["step"] == 4
    assert ended.of("step")[0]["shapes"] == {"input_ids": [2, 8], "labels": [2, 8]}
