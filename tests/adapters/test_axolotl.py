from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.axolotl import Axolotl
from oomguard.errors import ConfigError
from oomguard.estimate.formats import formats, raises
from oomguard.job.memory_settings import FusedPart, LoraKernels
from oomguard.job.plan import Precision, Quantization, Sharding, Tuning
from oomguard.job.training_job import World

CLI = "axolotl train train.yaml"
ALL_PARTS = frozenset(FusedPart)
TEXT = "base_model: m\ndatasets: [{path: d, type: alpaca}]\n"


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        ("", "micro_batch", 1),
        ("", "sequence_length", 512),
        ("", "precision", Precision.BF16_TRUE),
        ("", "tuning", Tuning.FULL),
        ("", "optimizer", "adamw_torch_fused"),
        ("", "eval_batch", None),
        ("batch_size: 12\nmicro_batch_size: 4", "accumulation", 3),
        ("gradient_checkpointing: offload", "checkpointing", True),
        ("bf16: false", "precision", Precision.FP32),
        ("bf16: false\nfp16: true", "precision", Precision.FP16_TRUE),
        ("bf16: full", "precision", Precision.BF16_TRUE),
        ("adapter: lora\nload_in_8bit: true", "precision", Precision.BF16_TRUE),
        ("adapter: lora\nload_in_8bit: true\nbf16: false", "precision", Precision.FP16_TRUE),
        ("adapter: qlora\nload_in_4bit: true\nbf16: false", "precision", Precision.FP32),
        ("adapter: qlora\nload_in_4bit: true", "quantization", Quantization.NF4_DOUBLE),
        ("adapter: lora", "tuning", Tuning.LORA),
        ("adapter: llama-adapter", "tuning", Tuning.OTHER),
    ],
)
def test_a_key_is_read(bench: Callable[..., Any], lines: str, field: str, value: object) -> None:
    assert getattr(bench(Axolotl()).job(CLI, f"{TEXT}{lines}\n").asked, field) == value


@pytest.mark.parametrize(
    ("lines", "autocast"),
    [
        ("", True),
        ("bf16: true", True),
        ("bf16: full", False),
        ("bf16: false", False),
        ("bf16: false\nbfloat16: true", True),
        ("bf16: false\nfp16: true", True),
        ("bf16: false\nfloat16: true", False),
        ("bf16: false\nload_in_8bit: true", False),
        ("deepspeed: {zero_optimization: {stage: 2}}", False),
    ],
)
def test_the_trainer_autocasts_over_weights_in_16_bits(
    bench: Callable[..., Any], lines: str, autocast: bool
) -> None:
    # axolotl 0.19.0, core/builders/base.py (_configure_precision_settings)
    job = bench(Axolotl()).job(CLI, f"{TEXT}adapter: lora\n{lines}\n")
    found = formats(job.asked, Axolotl().memory_settings(job))
    assert found.autocast is autocast


@pytest.mark.parametrize(
    ("lines", "raised"),
    [
        ("", True),
        ("attn_implementation: sdpa", True),
        ("sdp_attention: true", True),
        ("fp16: true", True),
        ("bf16: false", False),
        ("attn_implementation: flash_attention_2", False),
        ("attn_implementation: kernels-community/vllm-flash-attn3", False),
        ("flash_attention: true", False),
        ("flex_attention: true", False),
        ("adapter: lora", False),
        ("fsdp_config: {reshard_after_forward: true}", False),
        ("deepspeed: {zero_optimization: {stage: 1}}", False),
        ("plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]", False),
    ],
)
def test_embeddings_that_full_tuning_leaves_in_fp32_are_counted_and_beside_a_reference_named(
    bench: Callable[..., Any], lines: str, raised: bool
) -> None:
    # axolotl 0.19.0, loaders/model.py (_configure_embedding_dtypes)
    job = bench(Axolotl()).job(CLI, f"{TEXT}{lines}\n")
    recipe = Axolotl().memory_settings(job)
    assert raises(job.asked, recipe) is raised
    for text in ("", "rl: kto\n"):
        other = bench(Axolotl()).job(CLI, f"{TEXT}{lines}\n{text}")
        named = [one for one in Axolotl().unmodelled(other) if one.key == "attn_implementation"]
        effects = [one.effect for one in named if "raises embeddings" in one.effect]
        assert len(effects) == int(raised and bool(text))


@pytest.mark.parametrize(
    ("lines", "quantization", "precision"),
    [
        ("bf16: false", Quantization.INT8, Precision.FP16_TRUE),
        ("bf16: false\nload_in_8bit: true", Quantization.NF4_DOUBLE, Precision.FP32),
        ("bf16: true", Quantization.INT8, Precision.BF16_TRUE),
        ("bf16: false\nfp16: true\nload_in_8bit: true", Quantization.NONE, Precision.FP16_TRUE),
    ],
)
def test_without_a_switch_the_precision_follows_the_quantization(
    bench: Callable[..., Any],
    folder: str,
    lines: str,
    quantization: Quantization,
    precision: Precision,
) -> None:
    table = bench(Axolotl())
    job = table.job(CLI, f"{TEXT}adapter: lora\n{lines}\n")
    plan = Axolotl().normalize(job, replace(job.asked, quantization=quantization))
    assert plan.precision is precision
    assert table.reread(job, Axolotl().write(job, plan, folder)).asked == plan


@pytest.mark.parametrize(
    ("lines", "parts", "since"),
    [
        ("adapter: lora", ALL_PARTS, (0, 9, 1)),
        ("adapter: qlora\nload_in_4bit: true", ALL_PARTS, (0, 9, 1)),
        ("adapter: lora\nlora_dropout: 0.05", ALL_PARTS, (0, 16)),
        ("adapter: lora\nlora_mlp_kernel: true", {FusedPart.MLP}, (0, 7)),
        (
            "adapter: lora\nlora_qkv_kernel: true\nlora_o_kernel: true\nlora_dropout: 0.1",
            {FusedPart.ATTENTION, FusedPart.OUTPUT},
            (0, 16),
        ),
        ("adapter: lora\nlora_embedding_kernel: true", None, None),
        ("adapter: lora\nlora_o_kernel: false", None, None),
        ("adapter: lora\nload_in_8bit: true", None, None),
        ("adapter: lora\nrl: dpo", None, None),
        ("adapter: lora\ntrust_remote_code: true", None, None),
        ("adapter: lora\nnvfp4_merge_aware: true", None, None),
        ("adapter: lora\npeft_use_dora: true", None, None),
        ("adapter: lora\nlora_mlp_kernel: true\nrl: dpo", None, None),
        ("lora_mlp_kernel: true", None, None),
    ],
)
def test_lora_kernels_are_those_that_axolotl_switches_on(
    bench: Callable[..., Any], lines: str, parts: set[FusedPart] | None, since: tuple[int, ...]
) -> None:
    # axolotl 0.19.0, utils/schemas/config.py (check_auto_enable_lora_kernels)
    job = bench(Axolotl()).job(CLI, f"{TEXT}{lines}\n")
    lora = Axolotl().memory_settings(job).lora
    found = lora.fused if lora else None
    wanted = LoraKernels(parts=frozenset(parts), since=("axolotl", since)) if parts else None
    assert found == wanted


@pytest.mark.parametrize(
    ("version", "fused"),
    [("", None), ("fsdp_version: 2\n", "lora_mlp_kernel")],
)
def test_under_fsdp_kernels_are_off_in_its_first_version_and_named_in_its_second(
    bench: Callable[..., Any], version: str, fused: str | None
) -> None:
    text = f"{TEXT}adapter: lora\nfsdp_config: {{reshard_after_forward: true}}\n{version}"
    job = bench(Axolotl(), gpus=2).job(CLI, text)
    assert Axolotl().memory_settings(job).lora.fused is None  # type: ignore[union-attr]
    named = [one.key for one in Axolotl().unmodelled(job) if "kernel" in one.key]
    assert named == ([fused] if fused else [])


@pytest.mark.parametrize(
    ("argv", "world"),
    [
        (CLI, World(per_node=2)),
        (f"{CLI} -- --num_processes 4", World(per_node=4)),
        (f"{CLI} --launcher torchrun -- --nproc_per_node=3", World(per_node=3)),
        ("torchrun --nproc-per-node 2 -m axolotl.cli.train train.yaml", World(per_node=2)),
        ("accelerate launch -m axolotl.cli.train train.yaml", World(per_node=2)),
    ],
)
def test_the_launcher_makes_the_world(
    bench: Callable[..., Any], folder: str, argv: str, world: World
) -> None:
    job = bench(Axolotl(), gpus=2).job(argv, TEXT)
    assert job.world == world
    command = Axolotl().write(job, job.asked, folder)
    assert " ".join(command.argv) == argv.replace("train.yaml", f"{folder}/train.yaml")


def test_lora_in_4_bit_is_qlora(bench: Callable[..., Any], folder: str) -> None:
    job = bench(Axolotl()).job(CLI, TEXT + "adapter: lora\n")
    plan = replace(job.asked, quantization=Quantization.NF4_DOUBLE)
    assert Axolotl().refusal(job, plan) is None
    text = Axolotl().write(job, plan, folder).files[0].text
    assert text == TEXT + "adapter: qlora\nload_in_4bit: true\n"


@pytest.mark.parametrize(
    ("lines", "change", "message"),
    [
        ("", {"quantization": Quantization.INT8}, "without setting an adapter"),
        ("relora: true", {"sharding": Sharding.ZERO2}, "not supported with ReLoRA"),
        ("optimizer: muon", {"sharding": Sharding.ZERO3}, "Muon optimizer"),
        (
            "sample_packing: true\ncontext_parallel_size: 2",
            {"micro_batch": 2},
            "micro_batch_size must be set to 1",
        ),
        (
            "auto_find_batch_size: true",
            {"sharding": Sharding.ZERO3},
            "`auto_find_batch_size` isn't",
        ),
        ("adapter: lora", {"quantization": Quantization.FP4}, "no setting for quantization"),
    ],
)
def test_a_refused_plan_is_refused_with_the_reason(
    bench: Callable[..., Any], lines: str, change: dict[str, Any], message: str
) -> None:
    job = bench(Axolotl()).job(CLI, f"{TEXT}{lines}\n")
    assert Axolotl().refusal(job, job.asked) is None
    assert message in (Axolotl().refusal(job, replace(job.asked, **change)) or "")


@pytest.mark.parametrize("lines", ["", "load_in_8bit: true\n"])
def test_qlora_needs_4_bits(bench: Callable[..., Any], lines: str) -> None:
    job = bench(Axolotl()).job(CLI, f"{TEXT}adapter: qlora\n{lines}")
    assert "load_in_4bit to be True" in (Axolotl().refusal(job, job.asked) or "")
    packed = bench(Axolotl()).job(CLI, f"{TEXT}adapter: qlora\nload_in_4bit: true\n")
    own = "adapter: qlora\nload_in_4bit: true\nbnb_config_kwargs: {bnb_4bit_quant_type: nf4}\n"
    asked = bench(Axolotl()).job(CLI, TEXT + own)
    assert Axolotl().refusal(asked, asked.asked) is None
    assert Axolotl().refusal(packed, packed.asked) is None
    assert Axolotl().refusal(packed, replace(packed.asked, quantization=Quantization.INT8)) is None


def test_a_command_without_a_config_is_named(bench: Callable[..., Any]) -> None:
    table = bench(Axolotl())
    with pytest.raises(ConfigError, match="from a config file"):
        table.adapter.referenced_files(table.request("axolotl train"))


def test_a_launcher_that_axolotl_does_not_have_is_named(bench: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="has no launcher") as raised:
        bench(Axolotl()).job(f"{CLI} --launcher ${{LAUNCHER}}", TEXT)
    assert "accelerate, torchrun, python" in str(raised.value.next_step)


def test_a_colocated_vllm_is_a_share_that_may_be_smaller_or_asleep(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(Axolotl())
    text = "base_model: a/b\nrl: %s\ntrl:\n  use_vllm: true\n  vllm_mode: colocate\n"
    job = table.job("axolotl train train.yaml", text % "grpo")
    assert (job.asked.engine_share, job.asked.engine_sleeps) == (0.9, False)
    plan = replace(job.asked, engine_share=0.6, engine_sleeps=True)
    command = table.adapter.write(job, plan, folder)
    assert table.reread(job, command).asked == plan
    other = table.job("axolotl train train.yaml", text % "dpo")
    assert other.asked.engine_share is None
