"""Each strategy by itself: what it changes, where it has nothing to give, what it answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from generators import jobs
from oomguard.cli.ladder_command import table
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.plan import (
    Allocator,
    DeviceMap,
    EmbeddingRows,
    LossKernel,
    Offload,
    Overlong,
    Precision,
    Quantization,
    Sharding,
    differences,
)
from oomguard.ladder.climb import CLASSIC
from oomguard.strategy import Fidelity
from strategy_changes import (
    ALL,
    CHANGES,
    CPU,
    DIVIDED,
    FULL,
    LORA,
    MEDIA,
    PINNED,
    TOWER,
    TWO,
    job_of,
    lengths,
)

GUIDE = Path(__file__).parents[2] / "docs" / "strategies.md"


@pytest.mark.parametrize(("name", "plan", "job", "changed"), CHANGES)
def test_what_a_strategy_changes(name, plan, job, changed):
    asked = job_of(plan, job)
    assert ALL[name].change(asked, asked.asked) == replace(asked.asked, **changed)


def test_each_strategy_is_in_the_table():
    assert {name for name, *_ in CHANGES} == set(ALL)


@pytest.mark.parametrize(
    ("name", "plan", "job"),
    [
        ("expandable_segments", {"allocator": Allocator.EXPANDABLE}, {}),
        ("fused_loss", {"loss_kernel": LossKernel.EAGER}, CPU),
        ("halve_eval_batch", {"eval_batch": 1}, {}),
        ("move_predictions_to_host", {"eval_accumulation": 0}, CPU),
        ("fewer_loader_workers", {"loader_workers": 0}, {}),
        ("fewer_preprocess_workers", {"preprocess_workers": 1}, {}),
        ("unpin_memory", {"pin_memory": True}, CPU),
        ("halve_micro_batch", {"micro_batch": 1}, {}),
        ("bound_tokens", {"micro_batch": 1}, {**DIVIDED, **lengths(60, 64, 900)}),
        ("bound_tokens", {"token_bound": 900}, {**DIVIDED, **lengths(60, 64, 900)}),
        ("bound_tokens", {"sequence_length": 100}, {**DIVIDED, **lengths(60, 64, 900)}),
        ("bound_tokens", {}, {**DIVIDED, **lengths(60, 64, 900, filled=True)}),
        ("bound_tokens", {}, DIVIDED),
        ("bound_tokens", {}, lengths(60, 64, 900)),
        ("bound_tokens", {}, {**DIVIDED, **lengths(60, 64, 900), "compares_samples": True}),
        ("bound_tokens", {"sharding": Sharding.FSDP}, {**DIVIDED, **lengths(60, 64, 900)}),
        ("switch_to_zero2", {**FULL, **PINNED}, {}),
        ("switch_to_zero2", {**LORA, **PINNED}, TWO),
        ("offload_optimizer", {**FULL, **PINNED}, CPU),
        ("offload_optimizer", {**LORA, **PINNED, "optimizer": "adamw_torch"}, {}),
        ("offload_optimizer", {**FULL, **PINNED, "optimizer": "adamw_bnb_8bit"}, {}),
        ("offload_activations", PINNED, CPU),
        ("bf16_for_fp32", {"precision": Precision.FP32}, {"bfloat16": False}),
        ("bf16_weights", {"precision": Precision.FP16_MIXED}, {}),
        ("eight_bit_optimizer", {**LORA, "optimizer": "adamw_torch"}, {}),
        ("eight_bit_optimizer", {**FULL, "offload": frozenset({Offload.OPTIMIZER})}, {}),
        ("paged_optimizer", {"optimizer": "adamw_bnb_8bit"}, CPU),
        ("eight_bit_base", {**LORA, "quantization": Quantization.NF4}, {}),
        ("train_new_rows", {"embedding_rows": EmbeddingRows.ALL}, {}),
        ("cut_media_pixels", {"image_pixels": 224**2, "video_pixels": 112**2}, MEDIA),
        ("chunk_long_texts", {"sequence_length": 2048, "overlong": Overlong.CHUNKED}, {}),
        ("chunk_long_texts", {"sequence_length": 256, "overlong": Overlong.CUT}, {}),
        ("correct_device_map", {"device_map": DeviceMap.SHARED}, {}),
        ("correct_device_map", {"device_map": DeviceMap.HOST}, CPU),
        ("correct_device_map", {"device_map": DeviceMap.OWN}, TWO),
        ("cut_cutoff_len", {"sequence_length": 256}, {}),
        ("cut_cutoff_len", {"sequence_length": 2048}, MEDIA),
        ("cut_cutoff_len", {"sequence_length": 2048}, lengths(100, 200)),
        ("cut_cutoff_len", {"sequence_length": 1500}, {**MEDIA, **lengths(3000, least=1500)}),
        ("projector_only", {**LORA, "frozen": TOWER}, MEDIA),
        ("switch_to_zero3", PINNED, {}),
        ("switch_to_zero3", {**PINNED, "quantization": Quantization.NF4}, TWO),
        ("offload_parameters", {**PINNED, "quantization": Quantization.NF4}, {}),
        ("offload_parameters", PINNED, CPU),
        ("lora_instead_of_full", LORA, {}),
        ("sleeping_engine", {"engine_share": 0.3, "engine_sleeps": True}, {}),
        ("smaller_engine_share", {"engine_share": 0.3}, {"engine_least": 0.4}),
        ("smaller_engine_share", {"engine_share": 0.3}, {}),  # nothing known of the model
        ("generate_in_halves", {"generation_batch": 8}, {"group": 8}),  # part of a group
        ("generate_in_halves", {"generation_batch": 12}, {"group": 3}),  # part of a micro batch
        ("generate_in_halves", {}, {}),
        ("halve_completions", {"completion_length": 64}, {}),
        ("halve_completions", {}, {}),
        ("halve_lora_rank", {**LORA, "lora_rank": 8}, {}),
        ("enable_qlora", {**LORA, "quantization": Quantization.FP4}, {}),
    ],
)
def test_where_a_strategy_has_nothing_to_give(name, plan, job):
    asked = job_of(plan, job)
    reason = ALL[name].applied(asked, asked.asked)
    assert isinstance(reason, str)
    assert reason != ALL[name].otherwise or " or " not in reason, "say which of these it is"


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
def test_a_framework_that_has_no_such_choice_is_left_alone(strategy):
    """A plan of which nothing is known but the batch; only that one changes."""
    job = job_of({"micro_batch": 1})
    assert isinstance(strategy.applied(job, job.asked), str)
    assert strategy.otherwise != "it would change nothing", "say what it means"


@pytest.mark.parametrize("strategy", ALL.values(), ids=ALL)
@given(job=jobs)
@settings(max_examples=30)
def test_a_change_keeps_the_batch_of_a_step_and_comes_to_an_end(strategy, job):
    plan = job.asked
    for _ in range(64):
        changed = strategy.applied(job, plan)
        if isinstance(changed, str):
            return
        assert differences(plan, changed)
        assert changed.rank_batch == plan.rank_batch
        strategy.tell(job, plan, changed)
        plan = changed
        if not strategy.repeat:
            return
    pytest.fail("it gives something without end")


@pytest.mark.parametrize(
    ("kind", "phase", "first"),
    [
        (Kind.DEVICE_OOM, Phase.EVAL, "expandable_segments"),
        (Kind.HOST_OOM, Phase.EVAL, "evaluate_loss_only"),
        (Kind.HOST_OOM, Phase.PREPROCESS, "fewer_preprocess_workers"),
        (Kind.HOST_OOM, Phase.FORWARD, "fewer_loader_workers"),
        (Kind.HOST_OOM, Phase.BATCH, "fewer_loader_workers"),
        (Kind.DEVICE_OOM, Phase.BATCH, "halve_micro_batch"),
        (Kind.SHM_OOM, Phase.UNKNOWN, "fewer_loader_workers"),
        (Kind.PINNED_OOM, Phase.UNKNOWN, "unpin_memory"),
        (Kind.HOST_OOM, Phase.LOAD, "correct_device_map"),
        (Kind.DEVICE_OOM, Phase.LOAD, "correct_device_map"),
    ],
)
def test_the_first_remedy_for_a_failure(kind, phase, first):
    job = job_of({})
    verdict = Verdict(kind=kind, phase=phase)
    assert next(s.id for s in ALL.values() if s.cures(job, verdict)) == first


def test_the_classic_six_keep_their_order_in_the_whole_ladder():
    assert [name for name in ALL if name in CLASSIC] == list(CLASSIC)


def test_what_costs_nothing_stands_before_what_costs_something_but_for_the_classic_order():
    classic_math = {"switch_to_zero3", "offload_parameters", "low_cpu_mem_usage"}
    costs = [s.fidelity.cost for s in ALL.values() if s.id not in classic_math]
    assert costs == sorted(costs)


def test_a_cut_says_what_share_of_the_tokens_it_loses():
    cut = ALL["cut_cutoff_len"]
    plan = {"sequence_length": 2000}
    known = job_of(plan, lengths(500, 1500, 2000))
    shorter = cut.change(known, known.asked)
    assert cut.tell(known, known.asked, shorter) == (
        "loses 37.5% of the tokens (counted by a guess)"
    )
    chunked = replace(shorter, overlong=Overlong.CHUNKED)
    assert "loses no token" in cut.tell(known, known.asked, chunked)
    dropped = replace(shorter, overlong=Overlong.DROPPED)
    assert cut.tell(known, known.asked, dropped) == (
        "longer samples are left out, which loses 87.5% of the tokens (counted by a guess)"
    )
    assert cut.tell(job_of(plan), job_of(plan).asked, shorter) == ""
    assert cut.tell(job_of(plan), job_of(plan).asked, dropped) == "longer samples are left out"


def test_the_table_of_the_guide_is_that_of_the_files():
    _, written = GUIDE.read_text().split("do not edit below -->\n")
    assert written == table(tuple(ALL.values())) + "\n", "run: make strategies-table"


def test_every_summary_fits_a_line_of_the_account():
    assert [s.id for s in ALL.values() if len(s.summary) > 100] == []
    assert {s.fidelity for s in ALL.values()} == set(Fidelity)
