"""What becomes of a sample that is too long, and where each rank loads its copy of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.registry import adapter_named
from oomguard.job.plan import DeviceMap, EmbeddingRows, Overlong, Tuning
from oomguard.job.training_job import World

LF = "model_name_or_path: m\ntemplate: default\n"
AXOLOTL = "base_model: m\ndatasets: []\n"
SWIFT = "model: m\ndataset: d\nmax_length: 64\n"
TRL = "model_name_or_path: m\ndataset_name: d\n"
CUT, DROPPED, CHUNKED = Overlong.CUT, Overlong.DROPPED, Overlong.CHUNKED
#: Framework, command, file, what it does with long samples, and whether it can chunk them.
TABLE = [
    ("llamafactory", "lmf train train.yaml", LF, CUT, False),
    ("llamafactory", "lmf train train.yaml", LF + "packing: true\n", CUT, False),
    ("llamafactory", "lmf train train.yaml", LF + "stage: pt\n", CHUNKED, True),
    ("llamafactory", "lmf train train.yaml", LF + "stage: pt\npacking: false\n", CUT, True),
    ("llamafactory", "lmf train train.yaml", LF + "tokenized_path: t\n", None, False),
    ("litgpt", "litgpt finetune_lora c", None, CUT, False),
    ("hf_trainer", "python run_clm.py --block_size 512", None, CHUNKED, True),
    ("hf_trainer", "python train.py --max_length 512", None, None, False),
    ("trl", "trl sft --config train.yaml", TRL, CUT, False),
    ("trl", "trl sft --config train.yaml", TRL + "packing: true\n", CUT, True),
    ("trl", "trl sft --config train.yaml --packing_strategy wrapped", TRL, CUT, False),
    ("trl", "trl sft --config train.yaml --packing --packing_strategy wrapped", TRL, CHUNKED, True),
    ("qwen", "torchrun finetune.py --lazy_preprocess True --q_lora", None, CUT, False),
    ("axolotl", "axolotl train train.yaml", AXOLOTL, DROPPED, False),
    ("axolotl", "axolotl train train.yaml --excess_length_strategy truncate", AXOLOTL, CUT, False),
    ("ms_swift", "swift sft train.yaml", SWIFT, DROPPED, False),
    ("ms_swift", "swift pt train.yaml", SWIFT, DROPPED, True),
    ("ms_swift", "swift pt train.yaml", SWIFT + "truncation_strategy: left\n", CUT, True),
    ("ms_swift", "swift pt train.yaml --use_chat_template true", SWIFT, DROPPED, False),
]


@pytest.mark.parametrize(
    ("name", "job", "does", "can"),
    [(row[0], row[1:3], *row[3:]) for row in TABLE],
    ids=[f"{row[0]}-{number}" for number, row in enumerate(TABLE)],
)
def test_long_samples_and_whether_they_can_be_chunked(
    bench: Callable[..., Any],
    name: str,
    job: tuple[str, str | None],
    does: Overlong | None,
    can: bool,
) -> None:
    table = bench(adapter_named(name))
    job = table.job(*job)
    assert job.asked.overlong is does
    plan = replace(job.asked, overlong=CHUNKED)
    refused = table.adapter.refusal(job, plan)
    assert (refused is None) is can
    if can:
        assert table.reread(job, table.adapter.write(job, plan, "/f")).asked == plan


def test_a_cut_is_refused_where_it_would_stop_axolotl(bench: Callable[..., Any]) -> None:
    table = bench(adapter_named("axolotl"))
    job = table.job("axolotl train train.yaml", AXOLOTL + "excess_length_strategy: raise\n")
    refusal = table.adapter.refusal(job, replace(job.asked, sequence_length=256))
    assert refusal is not None
    assert "stops at a sample" in refusal


@pytest.mark.parametrize(
    ("name", "argv", "text", "found"),
    [
        ("hf_trainer", "torchrun --nproc_per_node 2 train.py", None, None),
        (
            "hf_trainer",
            "torchrun --nproc_per_node 2 train.py --device_map auto",
            None,
            DeviceMap.SHARED,
        ),
        ("hf_trainer", "python train.py --device_map cpu", None, DeviceMap.HOST),
        ("hf_trainer", "python train.py --device_map cuda", None, DeviceMap.OWN),
        ("ms_swift", "swift sft train.yaml", SWIFT, DeviceMap.OWN),
        ("ms_swift", "swift sft train.yaml --device_map auto", SWIFT, DeviceMap.SHARED),
        ("ms_swift", "swift sft train.yaml", SWIFT + "device_map: cpu\n", DeviceMap.HOST),
        ("ms_swift", "swift sft train.yaml", SWIFT + "device_map: '{\"\": 0}'\n", DeviceMap.OWN),
    ],
)
def test_a_device_map_is_read_and_corrected(
    bench: Callable[..., Any], name: str, argv: str, text: str | None, found: DeviceMap | None
) -> None:
    table = bench(adapter_named(name), gpus=2)
    job = table.job(argv, text)
    assert job.asked.device_map is found
    plan = replace(job.asked, device_map=DeviceMap.OWN)
    if found is None:
        assert table.adapter.refusal(job, plan) is not None
        return
    assert table.adapter.refusal(job, plan) is None
    assert table.reread(job, table.adapter.write(job, plan, "/f")).asked == plan


def test_a_model_that_is_spread_over_the_devices_has_one_rank(bench: Callable[..., Any]) -> None:
    table = bench(adapter_named("hf_trainer"), gpus=4)
    assert table.job("python train.py").world == World(per_node=4)
    assert table.job("python train.py --device_map auto").world == World()


@pytest.mark.parametrize(
    ("name", "argv", "names"),
    [
        ("qwen", "python finetune.py --use_lora --lazy_preprocess True", ("wte", "lm_head")),
        ("qwen", "python finetune.py --use_lora --q_lora --fp16 True", ()),
        ("qwen", "python finetune.py --q_lora --model_name_or_path a-Chat --use_lora", ()),
        ("qwen", "python finetune.py --lazy_preprocess True --data_path d", ()),
        ("hf_trainer", "python t.py --lora_r 8 --modules_to_save embed_tokens", ("embed_tokens",)),
        ("trl", "trl sft --use_peft --lora_modules_to_save lm_head", ("lm_head",)),
        ("trl", "trl sft --lora_modules_to_save lm_head", ()),
    ],
)
def test_matrices_over_the_vocabulary_that_are_trained_in_full_are_named(
    bench: Callable[..., Any], name: str, argv: str, names: tuple[str, ...]
) -> None:
    table = bench(adapter_named(name))
    job = table.job(argv)
    assert job.trained_embeddings == names
    rows = EmbeddingRows.ALL if names else None
    assert job.asked.embedding_rows is rows
    if names:
        why = table.adapter.refusal(job, replace(job.asked, embedding_rows=EmbeddingRows.NEW))
        assert why is not None
        assert "in full" in why or "trainable_token_indices" in why


def test_a_full_job_of_qwen_that_becomes_lora_trains_them_too(bench: Callable[..., Any]) -> None:
    table = bench(adapter_named("qwen"))
    job = table.job("python finetune.py --lazy_preprocess True --data_path d")
    plan = table.adapter.normalize(job, replace(job.asked, tuning=Tuning.LORA))
    assert (plan.lora_rank, plan.embedding_rows) == (64, EmbeddingRows.ALL)
    assert table.reread(job, table.adapter.write(job, plan, "/f")).asked == plan
