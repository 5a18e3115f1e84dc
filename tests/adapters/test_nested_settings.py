"""Keys inside of DeepSpeed's config and of accelerate's: read, of no effect, or named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from decided import twice
from oomguard.adapters.axolotl import Axolotl
from oomguard.adapters.hf.deepspeed import zero_config
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.adapters.ms_swift import MsSwift
from oomguard.adapters.settings.accelerate_settings import ACCELERATE
from oomguard.adapters.settings.blocks import unmodelled_inside
from oomguard.adapters.settings.deepspeed_settings import DEEPSPEED
from oomguard.adapters.settings.fsdp_settings import FSDP
from oomguard.adapters.trl import Trl
from oomguard.job.plan import Offload, Sharding
from oomguard.job.unmodelled import Direction

CWD = "/home/me/project"
#: Each framework's way to DeepSpeed's file.
NAMED = {
    "LLaMA-Factory": (
        LlamaFactory, "llamafactory-cli train train.yaml",
        "model_name_or_path: a/b\nstage: sft\ntemplate: qwen\ndataset: x\noutput_dir: o\n",
    ),
    "axolotl": (Axolotl, "axolotl train train.yaml", "base_model: a/b\n"),
    "ms-swift": (MsSwift, "swift sft train.yaml", "model: a/b\ndataset: x\n"),
    "TRL": (
        Trl, "trl sft --config train.yaml", "model_name_or_path: a/b\ndataset_name: x\n"
    ),
}  # fmt: skip
LINE = "deepspeed: zero.json\n"


def keys_in(zero: dict[str, Any]) -> set[str]:
    return {one.key for one in unmodelled_inside("deepspeed", zero, DEEPSPEED)}


@pytest.mark.parametrize("name", NAMED)
def test_every_framework_names_a_key_of_deepspeeds_file(
    bench: Callable[..., Any], name: str
) -> None:
    make, command, text = NAMED[name]
    zero = {"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}, "new_key": 1}}
    files = {f"{CWD}/zero.json": json.dumps(zero)}
    job = bench(make(), files=files).job(command, text + LINE)
    found = {one.key: one.direction for one in make().unmodelled(job)}
    either = Direction.EITHER
    assert found["deepspeed.zero_optimization.zenflow"] is either
    assert found["deepspeed.zero_optimization.new_key"] is either
    assert "deepspeed.zero_optimization.stage" not in found


@pytest.mark.parametrize("stage", [Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3])
def test_every_key_that_is_written_here_is_accounted_for(stage: Sharding) -> None:
    both = frozenset({Offload.OPTIMIZER, Offload.PARAMETERS})
    assert keys_in(json.loads(zero_config(stage, both))) == set()


@pytest.mark.parametrize(
    ("key", "usual", "other"),
    [
        ("sub_group_size", 10**9, 10**8),
        ("stage3_max_live_parameters", "auto", 10**8),
        ("stage3_prefetch_bucket_size", 5 * 10**7, 5 * 10**8),
        ("contiguous_gradients", True, False),
        ("zero_hpz_partition_size", 1, 8),
        ("zero_quantized_weights", False, True),
        ("allgather_bucket_size", 10**8, None),
    ],
)
def test_a_size_is_named_where_it_is_not_the_one_that_is_counted(
    key: str, usual: object, other: object
) -> None:
    assert keys_in({"zero_optimization": {key: usual}}) == set()
    if other is not None:
        assert keys_in({"zero_optimization": {key: other}}) == {
            f"deepspeed.zero_optimization.{key}"
        }


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("fsdp_config: {fsdp_sharding_strategy: SHARD_GRAD_OP}", "fsdp_sharding_strategy"),
        ("fsdp_config: {fsdp_sharding_strategy: FULL_SHARD}", None),
        ("fsdp_config: {fsdp_sharding_strategy: 1}", None),
        ("fsdp_config: {fsdp_reshard_after_forward: false}", "fsdp_reshard_after_forward"),
        ("fsdp_config: {fsdp_activation_checkpointing: true}", "fsdp_activation_checkpointing"),
        ("fsdp_config: {fsdp_future: true}", "fsdp_future"),
        ("fsdp_config: {fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer}", None),
        (
            "fsdp_config: {fsdp_transformer_layer_cls_to_wrap: MixtralSparseMoeBlock}",
            "fsdp_transformer_layer_cls_to_wrap",
        ),
    ],
)
def test_keys_of_accelerates_file(bench: Callable[..., Any], lines: str, named: str | None) -> None:
    files = {f"{CWD}/fsdp.yaml": f"distributed_type: FSDP\nnum_processes: 2\n{lines}\n"}
    table = bench(HFTrainer(), gpus=2, files=files)
    argv = "accelerate launch --config_file fsdp.yaml train.py --model_name_or_path a/b"
    job = table.job(f"{argv} --per_device_train_batch_size 2 --output_dir out")
    assert job.asked.sharding is Sharding.FSDP
    found = {one.key for one in table.adapter.unmodelled(job) if "accelerate" in one.key}
    assert found == ({f"accelerate.fsdp_config.{named}"} if named else set())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offload_params", True),
        ("activation_cpu_offload", True),
        ("reshard_after_forward", False),
        ("min_num_params", 10**8),
        ("new_key", 1),
    ],
)
@pytest.mark.parametrize("name", ["LLaMA-Factory", "axolotl", "ms-swift", "TRL"])
def test_every_framework_names_a_key_of_fsdps_config(
    bench: Callable[..., Any], name: str, key: str, value: object
) -> None:
    make, command, text = NAMED[name]
    inner = {key: value, "fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT"}
    both = {"fsdp": "full_shard auto_wrap", "fsdp_config": inner}
    files = {f"{CWD}/fsdp.json": json.dumps(both)}
    in_file = name == "ms-swift"
    lines = "fsdp: fsdp.json\n" if in_file else yaml.safe_dump(both)
    job = bench(make(), gpus=2, files=files).job(command, text + lines)
    assert job.asked.sharding is Sharding.FSDP
    outer = "fsdp" if in_file else "fsdp_config"
    found = {one.key for one in make().unmodelled(job) if one.key.startswith("fsdp")}
    assert found == {f"{outer}.{key}"}


def test_options_of_fsdp_in_a_file_that_is_not_there_are_named(bench: Callable[..., Any]) -> None:
    make, command, text = NAMED["TRL"]
    lines = "fsdp: full_shard\nfsdp_config: mine.json\n"
    job = bench(make(), gpus=2).job(command, text + lines)
    assert "fsdp_config" in {one.key for one in make().unmodelled(job)}


@pytest.mark.parametrize(
    ("lines", "checkpoints"),
    [
        ("fsdp_config: {fsdp_activation_checkpointing: true}\n", True),
        ("fsdp_config: {activation_checkpointing: true}\n", True),
        ("fsdp_config: {activation_checkpointing: false}\n", False),
        ("fsdp_config: {activation_checkpointing: true}\ndeepspeed: zero.json\n", False),
    ],
)
def test_axolotl_reads_the_checkpointing_of_fsdp(
    bench: Callable[..., Any], lines: str, checkpoints: bool
) -> None:
    make, command, text = NAMED["axolotl"]
    job = bench(make(), gpus=2).job(command, text + lines)
    assert job.asked.checkpointing is checkpoints
    named = {one.key for one in make().unmodelled(job)}
    assert not any("checkpointing" in key for key in named)


@pytest.mark.parametrize("name", ["LLaMA-Factory", "axolotl", "TRL"])
@pytest.mark.parametrize("kind", ["shard_grad_op auto_wrap", "no_shard", "full_shard offload"])
def test_another_kind_of_fsdp_is_named(bench: Callable[..., Any], name: str, kind: str) -> None:
    make, command, text = NAMED[name]
    job = bench(make(), gpus=2).job(command, f"{text}fsdp: {kind}\n")
    assert "fsdp" in {one.key for one in make().unmodelled(job)}


def test_no_key_is_in_two_groups() -> None:
    assert (twice(DEEPSPEED), twice(ACCELERATE), twice(FSDP)) == ([], [], [])
