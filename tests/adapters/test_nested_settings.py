"""Keys inside of DeepSpeed's config and of accelerate's: read, of no effect, or named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from decided import twice
from oomguard.adapters.axolotl import Axolotl
from oomguard.adapters.hf.deepspeed import zero_config
from oomguard.adapters.hf.hf_trainer import HFTrainer
from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.adapters.ms_swift import MsSwift
from oomguard.adapters.settings.accelerate_settings import ACCELERATE
from oomguard.adapters.settings.blocks import unmodelled_inside
from oomguard.adapters.settings.deepspeed_settings import DEEPSPEED
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


def test_no_key_is_in_two_groups() -> None:
    assert (twice(DEEPSPEED), twice(ACCELERATE)) == ([], [])
