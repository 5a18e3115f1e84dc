"""Walks over the whole ladder with the real adapters: what is planned can be written and read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from generators import Walk
from oomguard.adapters.contract import Adapter, JobRequest
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.litgpt import LitGPT
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.configfile.document import Source
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job
from oomguard.ladder.climb import Framework, Ladder
from oomguard.ladder.load import load_strategies, select

CWD = "/home/me"
FOLDER = "/home/me/runs/1"
PACKAGES = frozenset({"deepspeed", "bitsandbytes", "liger_kernel"})
LF = "model_name_or_path: meta-llama/Llama-3-8B\nper_device_train_batch_size: 4\n"
VL = LF.replace("meta-llama/Llama-3-8B", "Qwen/Qwen2.5-VL-7B-Instruct") + "template: qwen2_vl\n"
LIT = "checkpoint_dir: c\ntrain:\n  global_batch_size: 8\n  micro_batch_size: 4\n"
LIT += "  max_seq_length: 2048\n"
HF = "model_name_or_path: m\nmax_length: 2048\nload_in_4bit: false\nload_in_8bit: false\n"
HF += "lora_r: 64\n"
JOBS = {
    "lora": (LlamaFactory(), "llamafactory-cli train train.yaml", LF),
    "full": (LlamaFactory(), "llamafactory-cli train train.yaml", LF + "finetuning_type: full\n"),
    "full-bf16": (
        LlamaFactory(),
        "llamafactory-cli train train.yaml",
        LF + "finetuning_type: full\nbf16: true\ndataloader_num_workers: 4\n",
    ),
    "new-tokens": (LlamaFactory(), "llamafactory-cli train train.yaml", LF + "add_tokens: a,b\n"),
    "vision-full": (
        LlamaFactory(),
        "llamafactory-cli train train.yaml",
        VL + "finetuning_type: full\nfreeze_vision_tower: false\n",
    ),
    "galore": (
        LlamaFactory(),
        "llamafactory-cli train train.yaml",
        LF + "finetuning_type: full\nuse_galore: true\n",
    ),
    "litgpt-lora": (LitGPT(), "litgpt finetune_lora --config train.yaml", LIT),
    "litgpt-full": (LitGPT(), "litgpt finetune_full --config train.yaml", LIT),
    "trainer": (HFTrainer(), "python train.py", HF),
    "trainer-full": (HFTrainer(), "torchrun --nproc-per-node 2 train.py", "bf16: true\n"),
}
VERDICTS = [
    Verdict(kind=Kind.DEVICE_OOM, phase=Phase.BACKWARD),
    Verdict(kind=Kind.DEVICE_OOM, phase=Phase.LOAD),
    Verdict(kind=Kind.DEVICE_OOM, phase=Phase.EVAL),
    Verdict(kind=Kind.HOST_OOM, phase=Phase.FORWARD),
]


def ladder_of(adapter: Adapter) -> Ladder:
    framework = Framework(
        normalize=adapter.normalize,
        refusal=adapter.refusal,
        required_packages=adapter.required_packages,
        resume_mode=adapter.resume_mode,
    )
    return Ladder(strategies=select(load_strategies(), None), framework=framework)


def read(adapter: Adapter, request: JobRequest) -> Job:
    return adapter.read(replace(request, cwd=CWD, packages=PACKAGES))


def job_of(name: str, gpus: int) -> tuple[Adapter, Job]:
    adapter, argv, text = JOBS[name]
    source = Source(path=f"{CWD}/train.yaml", text=text)
    return adapter, read(
        adapter, JobRequest(argv=tuple(argv.split()), cwd=CWD, source=source, gpus=gpus)
    )


def reread(adapter: Adapter, job: Job, plan: Plan, gpus: int) -> Job:
    """Write a plan and read it back, as a user would launch it by hand."""
    command = adapter.write(job, plan, FOLDER)
    texts = {file.path: file.text for file in command.files}
    source = Source(path=command.config, text=texts[command.config]) if command.config else None
    return read(
        adapter,
        JobRequest(
            argv=command.argv, cwd=CWD, source=source, env=command.env, gpus=gpus, files=texts
        ),
    )


@pytest.mark.parametrize("gpus", [0, 1, 2])
@pytest.mark.parametrize("why", VERDICTS, ids=lambda v: f"{v.kind.value}-{v.phase.value}")
@pytest.mark.parametrize("name", JOBS)
def test_every_plan_of_a_walk_is_accepted_written_and_read_back(name, why, gpus):
    adapter, job = job_of(name, gpus)
    ladder = ladder_of(adapter)
    plans = [rung.plan for rung in Walk(job, ladder).rungs(lambda _: why) if rung.plan]

    for plan in plans:
        assert adapter.refusal(job, plan) is None
        assert reread(adapter, job, plan, gpus).asked == plan
    assert all(plan.rank_batch == job.asked.rank_batch for plan in plans)


@pytest.mark.parametrize(
    ("name", "gpus", "rungs"),
    [
        ("lora", 1, ["expandable_segments", "fused_loss", *["halve_micro_batch"] * 2,
                     "bf16_for_fp32", "eight_bit_base",
                     *["cut_cutoff_len"] * 3, "offload_parameters", "enable_qlora"]),
        ("full-bf16", 1, ["expandable_segments", "fused_loss", *["halve_micro_batch"] * 2,
                          "offload_optimizer", "bf16_weights", *["cut_cutoff_len"] * 3,
                          "offload_parameters", "lora_instead_of_full", "eight_bit_base",
                          "enable_qlora"]),
        ("litgpt-lora", 1, ["expandable_segments", *["halve_micro_batch"] * 2, "bf16_weights",
                            *["cut_cutoff_len"] * 3, "enable_qlora"]),
        ("trainer", 1, ["expandable_segments", "fused_loss", *["halve_micro_batch"] * 3,
                        "gradient_checkpointing", "bf16_for_fp32", "eight_bit_base",
                        *["cut_cutoff_len"] * 3, "offload_parameters",
                        *["halve_lora_rank"] * 3, "enable_qlora"]),
    ],
)  # fmt: skip
def test_the_walk_of_a_training_oom(name, gpus, rungs):
    adapter, job = job_of(name, gpus)
    ladder = ladder_of(adapter)
    walked = Walk(job, ladder).rungs(lambda _: VERDICTS[0])
    assert [rung.step.strategy for rung in walked if rung.step][: len(rungs)] == rungs


def test_new_tokens_are_explained_where_the_framework_cannot_train_their_rows_alone():
    adapter, job = job_of("new-tokens", 1)
    ladder = ladder_of(adapter)
    end = Walk(job, ladder).rungs(lambda _: VERDICTS[0])[-1]
    reasons = {skip.strategy: skip.reason for skip in end.skipped}
    assert "trainable_token_indices" in reasons["train_new_rows"]
    assert "Cannot resize embedding layers" in reasons["enable_qlora"]
