"""Invariants of every walk, over the real strategies."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from generators import OPEN, Walk, failures, jobs, make_job, make_ladder
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.plan import Plan, Quantization, Sharding, Tuning
from oomguard.job.training_job import Device, World
from oomguard.ladder.climb import Ladder
from oomguard.strategy import NEW_RECIPE, SAME_MATH, Fidelity, Remedy, Strategy

FORWARD = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.FORWARD)
LLM = Plan(
    micro_batch=16,
    accumulation=1,
    sequence_length=2048,
    tuning=Tuning.LORA,
    quantization=Quantization.NONE,
    sharding=Sharding.NONE,
    low_cpu_mem_usage=True,
    eval_batch=8,
)


@given(job=jobs, why=st.lists(failures, min_size=1, max_size=12), allow=st.sampled_from(Fidelity))
@settings(max_examples=300)
def test_every_walk_ends_repeats_no_plan_and_keeps_what_it_must(job, why, allow):
    ladder = make_ladder(allow)
    rungs = Walk(job, ladder).rungs(lambda number: why[number % len(why)])

    first, _ = ladder.prepare(job)
    plans = [first, *(rung.plan for rung in rungs if rung.plan)]
    assert len(plans) == len(rungs), "only the last climb finds nothing"
    assert all(a != b for i, a in enumerate(plans) for b in plans[i + 1 :])
    assert {plan.rank_batch * job.world.size for plan in plans} == {job.global_batch}
    assert all(rung.step.fidelity.cost <= allow.cost for rung in rungs if rung.step)
    assert all(plan.auto_find_batch_size is not True for plan in plans)


@given(job=jobs, why=failures)
def test_each_rung_is_taken_or_skipped_with_a_reason(job, why):
    ladder = make_ladder()
    rung = ladder.climb(job, [job.asked], [], why)

    ids = [strategy.id for strategy in ladder.strategies if not strategy.preflight]
    seen = [skip.strategy for skip in rung.skipped] + ([rung.step.strategy] if rung.step else [])
    assert seen == ids[: len(seen)]
    assert rung.step is not None or len(seen) == len(ids)
    assert all(skip.reason for skip in rung.skipped)


def test_a_training_oom_walks_the_classic_six_in_their_order():
    job = make_job(LLM, world=World(per_node=2))
    rungs = Walk(job, make_ladder(ladder="classic")).rungs(lambda _: FORWARD)

    assert [rung.step.strategy for rung in rungs if rung.step] == [
        *["halve_micro_batch"] * 4,
        *["cut_cutoff_len"] * 3,
        "switch_to_zero3",
        "enable_qlora",
    ]
    assert rungs[-1].skipped[-1].strategy == "low_cpu_mem_usage"


def test_zero3_and_a_4bit_base_branch():
    job = make_job(LLM, world=World(per_node=2))
    walked = [r.plan for r in Walk(job, make_ladder()).rungs(lambda _: FORWARD) if r.plan]

    assert any(plan.sharding is Sharding.ZERO3 for plan in walked)
    assert walked[-1].quantization is Quantization.NF4_DOUBLE
    assert not any(
        p.sharding is Sharding.ZERO3 and p.quantization is not Quantization.NONE for p in walked
    )


def test_a_host_oom_while_loading_goes_to_low_cpu_mem_usage_and_not_to_the_batch():
    job = make_job(replace(LLM, low_cpu_mem_usage=False))
    why = Verdict(kind=Kind.HOST_OOM, phase=Phase.LOAD)
    rung = make_ladder().climb(job, [job.asked], [], why)

    assert rung.step is not None
    assert rung.step.strategy == "low_cpu_mem_usage"
    assert rung.plan == LLM
    reasons = {skip.strategy: skip.reason for skip in rung.skipped}
    assert reasons["halve_micro_batch"] == "does not apply to a host OOM in load"


def test_on_a_cpu_job_the_host_is_the_device():
    why = Verdict(kind=Kind.HOST_OOM, phase=Phase.BACKWARD)
    on_cpu = make_ladder().climb(make_job(LLM, device=Device.CPU), [LLM], [], why)
    on_gpu = make_ladder().climb(make_job(LLM), [LLM], [], why)

    assert on_cpu.step is not None
    assert on_cpu.step.strategy == "halve_micro_batch"
    assert on_gpu.step is None


def test_an_eval_oom_halves_the_eval_batch_first():
    why = Verdict(kind=Kind.DEVICE_OOM, phase=Phase.EVAL)
    rungs = Walk(make_job(LLM), make_ladder()).rungs(lambda _: why)
    assert [r.step.strategy for r in rungs if r.step][:4] == [
        *["halve_eval_batch"] * 3,
        "halve_micro_batch",
    ]


def test_what_the_framework_refuses_is_skipped_in_its_own_words():
    framework = replace(OPEN, refusal=lambda _job, plan: "no" if plan.micro_batch < 16 else None)
    ladder = Ladder(strategies=make_ladder().strategies, framework=framework)
    job = make_job(LLM)
    rung = ladder.climb(job, [LLM], [], FORWARD)

    reasons = {skip.strategy: skip.reason for skip in rung.skipped}
    assert reasons["halve_micro_batch"] == "refused by llamafactory: no"
    assert rung.step is not None
    assert rung.step.strategy == "eight_bit_base"


def test_a_missing_package_skips_the_rung_and_prints_the_install_line():
    needs = lambda _job, plan: frozenset(  # noqa: E731
        {"bitsandbytes"} if plan.quantization is Quantization.NF4_DOUBLE else ()
    )
    framework = replace(OPEN, required_packages=needs)
    ladder = Ladder(strategies=make_ladder(ladder="enable_qlora").strategies, framework=framework)
    job = make_job(LLM, packages=frozenset(), python="/env/bin/python")
    rung = ladder.climb(job, [LLM], [], FORWARD)

    assert rung.plan is None
    assert rung.skipped[0].reason.endswith("/env/bin/python -m pip install bitsandbytes")


def test_a_rung_that_throws_away_what_was_trained_is_for_a_fresh_start_only():
    ladder = make_ladder(ladder="halve_lora_rank")
    job = make_job(replace(LLM, lora_rank=64))
    assert ladder.climb(job, [job.asked], [], FORWARD).plan == replace(LLM, lora_rank=32)

    rung = ladder.climb(job, [job.asked], [], FORWARD, trained=True)
    assert rung.plan is None
    assert rung.skipped[0].reason == "it would discard training progress"


def test_a_strategy_that_changes_the_global_batch_is_never_taken():
    greedy = Strategy(
        summary="smaller batch",
        fidelity=SAME_MATH,
        remedies=frozenset({Remedy(kind=Kind.DEVICE_OOM)}),
        change=lambda _job, plan: replace(plan, micro_batch=1),
        id="greedy",
    )
    ladder = Ladder(strategies=(greedy,), framework=OPEN, allow=NEW_RECIPE)
    rung = ladder.climb(make_job(LLM), [LLM], [], FORWARD)

    assert rung.plan is None
    assert rung.skipped[0].reason == "it would change the global batch of 16"


def test_the_framework_settles_what_a_change_brings_with_it():
    settle = lambda _job, plan: replace(plan, optimizer="paged")  # noqa: E731
    framework = replace(OPEN, normalize=settle)
    ladder = Ladder(strategies=make_ladder(ladder="classic").strategies, framework=framework)
    rung = ladder.climb(make_job(LLM), [LLM], [], FORWARD)

    assert rung.step is not None
    assert [change.field for change in rung.step.changes] == [
        "micro_batch",
        "accumulation",
        "optimizer",
    ]


def test_a_phase_that_is_only_a_default_rules_no_strategy_out():
    """Strategies for it come first; a job that builds its first batch by itself still gets half."""
    job = make_job(replace(LLM, low_cpu_mem_usage=False), device=Device.CPU)
    ladder = make_ladder()
    loading = Verdict(kind=Kind.HOST_OOM, phase=Phase.LOAD)
    unknown = replace(loading, phase_known=False)
    tried = Walk(job, ladder).rungs(lambda _: loading)
    strategies = [rung.step.strategy for rung in tried if rung.step]
    assert "halve_micro_batch" not in strategies

    walked = [r.step.strategy for r in Walk(job, ladder).rungs(lambda _: unknown) if r.step]
    assert walked[: len(strategies)] == strategies
    assert "halve_micro_batch" in walked


def test_making_a_batch_is_part_of_the_step():
    for device in Device:
        job = make_job(LLM, device=device)
        for kind in (Kind.HOST_OOM, Kind.DEVICE_OOM):
            why = Verdict(kind=kind, phase=Phase.BATCH)
            steps = [
                r.step.strategy
                for r in Walk(job, make_ladder()).rungs(lambda _, why=why: why)
                if r.step
            ]
            assert "halve_micro_batch" in steps
