from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.torchtune import Torchtune
from oomguard.errors import ConfigError
from oomguard.job.checkpoint import Mode
from oomguard.job.memory_settings import Family
from oomguard.job.plan import LossKernel, Offload, Precision, Quantization, Sharding, Tuning
from oomguard.job.training_job import World

ONE = "tune run lora_finetune_single_device --config train.yaml"
MANY = "tune run --nproc_per_node 2 lora_finetune_distributed --config train.yaml"
FULL = "tune run full_finetune_single_device --config train.yaml"
TEXT = """\
model:
  _component_: torchtune.models.llama3.lora_llama3_8b
  lora_rank: 8
batch_size: 2
loss:
  _component_: torch.nn.CrossEntropyLoss
"""


def test_recipe_and_config_make_the_job(bench: Callable[..., Any]) -> None:
    job = bench(Torchtune(), gpus=4).job(MANY, TEXT)
    assert (job.asked.tuning, job.asked.sharding) == (Tuning.LORA, Sharding.FSDP)
    assert job.world == World(per_node=2)
    assert (job.asked.precision, job.asked.loss_kernel) == (Precision.BF16_TRUE, LossKernel.EAGER)
    one = bench(Torchtune(), gpus=4).job(FULL, TEXT)
    assert (one.asked.tuning, one.asked.sharding) == (Tuning.FULL, Sharding.NONE)
    assert one.world == World()


def test_4_bit_is_an_argument_of_the_builder(bench: Callable[..., Any], folder: str) -> None:
    job = bench(Torchtune()).job(ONE, TEXT)
    plan = replace(job.asked, quantization=Quantization.NF4_DOUBLE, loss_kernel=LossKernel.FUSED)
    command = Torchtune().write(job, plan, folder)
    changed = TEXT.replace("lora_rank: 8\n", "lora_rank: 8\n  quantize_base: true\n")
    chunked = "torchtune.modules.loss.CEWithChunkedOutputLoss"
    assert command.files[0].text == changed.replace("torch.nn.CrossEntropyLoss", chunked)
    assert command.argv == (*ONE.split()[:-1], f"{folder}/train.yaml")


def test_a_4_bit_builder_is_read_and_taken_back(bench: Callable[..., Any], folder: str) -> None:
    job = bench(Torchtune()).job(ONE, TEXT.replace(".lora_llama3", ".qlora_llama3"))
    assert job.asked.quantization is Quantization.NF4_DOUBLE
    plan = replace(job.asked, quantization=Quantization.NONE)
    assert Torchtune().write(job, plan, folder).files[0].text == TEXT
    stated = bench(Torchtune()).job(ONE, TEXT.replace("rank: 8", "rank: 8\n  quantize_base: true"))
    assert stated.asked.quantization is Quantization.NF4_DOUBLE


def test_offloaded_activations_bring_checkpointing(bench: Callable[..., Any]) -> None:
    job = bench(Torchtune()).job(ONE, TEXT)
    plan = Torchtune().normalize(job, replace(job.asked, offload=frozenset({Offload.ACTIVATIONS})))
    assert plan.checkpointing is True
    assert Torchtune().refusal(job, plan) is None


@pytest.mark.parametrize(
    ("argv", "lines", "change", "message"),
    [
        (
            FULL,
            "optimizer_in_bwd: true",
            {"accumulation": 2, "micro_batch": 1},
            "Gradient accumulation is not supported",
        ),
        (ONE, "", {"offload": frozenset({Offload.ACTIVATIONS})}, "checkpointing is True"),
        (
            ONE,
            "device: cpu\nenable_activation_checkpointing: true",
            {"offload": frozenset({Offload.ACTIVATIONS})},
            "training on CUDA",
        ),
        (ONE, "", {"precision": Precision.FP16_TRUE}, "fp16 precision is not supported"),
        (ONE, "", {"sharding": Sharding.ZERO3}, "has no DeepSpeed"),
        (
            ONE,
            "",
            {"offload": frozenset({Offload.OPTIMIZER, Offload.PARAMETERS})},
            "distributed recipes alone",
        ),
        (ONE, "", {"tuning": Tuning.FULL}, "another recipe"),
        (ONE, "", {"quantization": Quantization.INT8}, "no setting for quantization"),
    ],
)
def test_a_refused_plan_is_refused_with_the_reason(
    bench: Callable[..., Any], argv: str, lines: str, change: dict[str, Any], message: str
) -> None:
    job = bench(Torchtune()).job(argv, f"{TEXT}{lines}\n")
    assert Torchtune().refusal(job, job.asked) is None
    assert message in (Torchtune().refusal(job, replace(job.asked, **change)) or "")


def test_a_config_of_torchtunes_own_has_to_be_copied_first(bench: Callable[..., Any]) -> None:
    argv = "tune run lora_finetune_single_device --config llama3/8B_lora_single_device"
    assert Torchtune().config_path(tuple(argv.split())) is None
    with pytest.raises(ConfigError) as caught:
        bench(Torchtune()).job(argv)
    assert "tune cp" in caught.value.next_step


def test_a_bare_config_tells_its_recipe(bench: Callable[..., Any]) -> None:
    source = bench(Torchtune()).request("x", TEXT).source
    document = {"model": {"_component_": "torchtune.models.llama3.qlora_llama3_8b"}}
    command = Torchtune().command_for(source, document, ())
    assert command[:3] == ("tune", "run", "lora_finetune_single_device")


def test_nothing_survives_a_relaunch(bench: Callable[..., Any]) -> None:
    job = bench(Torchtune()).job(ONE, TEXT)
    assert Torchtune().resume_mode(job, job.asked, job.asked)[0] is Mode.RESTART
    assert Torchtune().checkpoint_layout(job) is None


def test_what_decides_its_memory_is_read_from_the_settings(bench: Callable[..., Any]) -> None:
    lines = (
        "  lora_attn_modules: [q_proj, output_proj]\n  apply_lora_to_mlp: true\n"
        "optimizer: {_component_: torch.optim.AdamW, fused: true}\n"
        "checkpointer: {checkpoint_dir: weights/mine/}\n"
        "dataset: {source: json, data_files: data.json, packed: true}\n"
        "compile: true\noptimizer_in_bwd: true\n"
    )
    job = bench(Torchtune()).job(ONE, TEXT.replace("batch_size", f"{lines}batch_size"))
    recipe = Torchtune().memory_settings(job)
    assert (recipe.family, recipe.model) == (Family.TORCHTUNE, "meta-llama/Meta-Llama-3-8B")
    assert recipe.component is not None
    assert recipe.component["_component_"] == "torchtune.models.llama3.lora_llama3_8b"
    assert recipe.lora is not None
    assert recipe.lora.targets == ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert (recipe.fused, recipe.compiled, recipe.step_in_backward) == (True, True, True)
    assert (recipe.padded, recipe.max_grad_norm) == (True, 0.0)
    assert [path.rsplit("/", 1)[-1] for path in recipe.data] == ["data.json"]


@pytest.mark.parametrize(
    ("builder", "model"),
    [
        ("qwen2.qwen2_7b", "Qwen/Qwen2-7B"),
        ("qwen2.qlora_qwen2_7b", "Qwen/Qwen2-7B"),
        ("qwen2_5.qwen2_5_7b_instruct", "Qwen/Qwen2.5-7B"),
        ("llama2.llama2", "weights/mine"),
    ],
)
def test_the_model_is_told_by_its_builder_or_by_its_folder(
    bench: Callable[..., Any], builder: str, model: str
) -> None:
    text = (
        TEXT.replace("llama3.lora_llama3_8b", builder)
        + "checkpointer: {checkpoint_dir: weights/mine/}\n"
    )
    assert Torchtune().memory_settings(bench(Torchtune()).job(FULL, text)).model == model
