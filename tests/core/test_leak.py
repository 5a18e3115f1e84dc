"""Leaks: what is one, when it is reported, and what an OOM is put down to."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.evidence.verdict import Cause
from oomguard.process.messages import Pass
from oomguard.run.leak import MAX_POINTS, LeakDetector, MemoryTrend, ProcessTrend
from oomguard.units import GIB, MIB
from reported import on_card, reported


def watched(kept, *, steps, within=lambda _step: 100 * MIB, limit=None):
    trend = MemoryTrend(limit_bytes=limit)
    for step in range(1, steps + 1):
        trend.add(step, kept_bytes=kept(step), peak_bytes=kept(step) + within(step), batch=1024)
    return trend


@given(
    per_step=st.integers(4 * MIB, 64 * MIB),
    steps=st.integers(20, 400),
    seed=st.integers(0, 99),
)
def test_a_steady_leak_is_seen_and_its_end_forecast_within_a_tenth(per_step, steps, seed):
    noise = random.Random(seed)
    base = 2 * GIB
    kept = lambda step: base + per_step * step + noise.randint(-MIB, MIB)  # noqa: E731
    ends = 2 * steps
    growth = watched(kept, steps=steps, limit=base + per_step * ends + 100 * MIB).growth()

    assert growth is not None
    assert growth.bytes_per_step == pytest.approx(per_step, rel=0.2)
    assert growth.forecast_step == pytest.approx(ends, rel=0.1)


@given(seed=st.integers(0, 999), steps=st.integers(8, 500))
def test_noise_around_a_level_is_no_growth(seed, steps):
    noise = random.Random(seed)
    kept = lambda _step: 4 * GIB + noise.randint(-20 * MIB, 20 * MIB)  # noqa: E731
    assert watched(kept, steps=steps).growth() is None


def test_batches_of_many_lengths_are_no_growth():
    noise = random.Random(1)
    within = lambda _step: noise.randint(1, 4 * GIB)  # noqa: E731
    assert watched(lambda _step: 4 * GIB, steps=200, within=within).growth() is None


def test_one_jump_is_no_growth():
    assert watched(lambda step: (4 if step < 30 else 5) * GIB, steps=200).growth() is None


def test_the_first_steps_of_an_optimizer_are_no_growth():
    assert watched(lambda step: min(step, 3) * GIB, steps=30).growth() is None


def test_few_points_show_nothing():
    assert watched(lambda step: step * GIB, steps=7).growth() is None


def test_without_a_limit_there_is_growth_but_no_forecast():
    growth = watched(lambda step: step * 64 * MIB, steps=30).growth()
    assert growth is not None
    assert growth.forecast_step is None


def test_a_long_run_is_watched_in_bounded_memory():
    trend = watched(lambda step: step * MIB, steps=20_000)
    assert len(trend._levels) <= MAX_POINTS
    assert trend.growth().bytes_per_step == MIB


def test_a_batch_far_larger_than_all_before_is_an_outlier():
    trend = watched(lambda _step: GIB, steps=10)
    assert trend.is_outlier(2048)
    assert not trend.is_outlier(1100)
    assert not watched(lambda _step: GIB, steps=2).is_outlier(2048)


def passed(sizes, kept, *, steps=0, within=lambda size: 200 * MIB * size // 512):
    """Return what the first passes over batches of these sizes show; `kept` is told them so far."""
    process, shapes = ProcessTrend(step=steps), set()
    for number, size in enumerate(sizes, 1):
        shapes.add(size)
        after = kept(sizes[:number])
        process.passes.add(
            Pass(shapes=len(shapes), elements=size, before_bytes=after + within(size),
                 after_bytes=after)
        )  # fmt: skip
    return process


LENGTHS = st.lists(st.integers(64, 512), min_size=24, max_size=120)
SHARES = st.integers(0, 4)


@given(sizes=LENGTHS, of_batch=SHARES, of_largest=SHARES, ready=st.integers(0, 12),
       seed=st.integers(0, 99))  # fmt: skip
def test_a_healthy_job_has_no_growth_whatever_the_order_of_its_lengths(
    sizes, of_batch, of_largest, ready, seed
):
    """What a batch needs, what the largest so far left behind, a warm-up, and noise."""
    noise = random.Random(seed)

    def kept(so_far):
        warm = 400 if len(so_far) > ready else 0
        units = of_batch * so_far[-1] + of_largest * max(so_far)
        return 2 * GIB + (units + warm) * MIB + noise.randint(-MIB, MIB)

    assert passed(sizes, kept).growth() is None


@given(sizes=st.lists(st.integers(64, 512), min_size=40, max_size=60, unique=True),
       per_shape=st.integers(8, 64), of_largest=SHARES, seed=st.integers(0, 99))  # fmt: skip
def test_growth_with_each_new_length_is_seen_within_the_first_step(
    sizes, per_shape, of_largest, seed
):
    noise = random.Random(seed)
    noise.shuffle(sizes)

    def kept(so_far):
        units = of_largest * max(so_far) + per_shape * len(set(so_far))
        return GIB + units * MIB + noise.randint(-MIB // 4, MIB // 4)

    process = passed(sizes, kept)
    growth = process.growth()
    assert growth is not None
    assert growth.bytes_per_step == pytest.approx(per_shape * MIB * len(sizes), rel=0.2)
    assert process.cause(min(sizes)) is Cause.GROWTH


def test_what_grows_only_with_new_lengths_is_told_from_what_grows_with_each_step():
    lengths = [length for length in range(500, 440, -1) for _ in range(2)][:64]
    by_length = passed(lengths, lambda so_far: GIB + 32 * MIB * len(set(so_far)), steps=4)
    by_pass = passed(lengths, lambda so_far: GIB + 32 * MIB * len(so_far), steps=4)
    assert by_length.growth().per_shape_bytes == 32 * MIB
    assert by_length.growth().bytes_per_step == pytest.approx(16 * 32 * MIB / 2, rel=0.1)
    assert by_pass.growth().per_shape_bytes is None
    assert by_pass.growth().bytes_per_step == 16 * 32 * MIB


def test_lengths_that_only_rise_are_a_batch_that_is_larger_and_no_growth():
    sizes = list(range(100, 400, 5))
    assert passed(sizes, lambda so_far: GIB + 2 * MIB * so_far[-1]).growth() is None


def test_a_single_long_batch_is_an_outlier_though_memory_rose_a_little():
    kept = lambda so_far: GIB + 8 * MIB * len(so_far)  # noqa: E731
    process = passed([128] * 20, kept, within=lambda _size: GIB)
    for step in range(1, 21):
        process.steps.add(step, kept_bytes=GIB, peak_bytes=2 * GIB, batch=128)
    process.step = 10
    assert process.growth() is not None
    assert process.cause(128) is Cause.GROWTH
    assert process.cause(512) is Cause.OUTLIER, "three GiB more, of which growth is no twentieth"


@given(sizes=st.lists(st.integers(1, 4000), min_size=20, max_size=60), seed=st.integers(0, 99))
def test_where_shapes_are_not_known_what_a_batch_takes_is_its_size(sizes, seed):
    noise = random.Random(seed)
    trend = MemoryTrend()
    for step, size in enumerate(sizes, 1):
        kept = GIB + size * MIB + noise.randint(-MIB, MIB)
        trend.add(step, kept_bytes=kept, peak_bytes=kept + size * 3 * MIB, batch=0)
    assert trend.growth() is None


def test_passes_of_a_report_count_and_those_of_the_oom_too():
    found = detector(data_limit_bytes=64 * GIB)

    def passes(first, last):
        return [
            {"shapes": n, "elements": 512 - n, "before_bytes": GIB, "after_bytes": n * 32 * MIB}
            for n in range(first, last)
        ]

    memory = {"rss_bytes": GIB, "peak_rss_bytes": None, "data_bytes": GIB, "cuda": []}
    found.update(reported("step", step=1, memory=memory, passes=passes(1, 9)).report)
    last = oom(step=1, shapes={"input_ids": [1, 300]}, passes=passes(9, 17))
    assert detector().cause(last) is Cause.UNKNOWN, "eight passes show nothing"
    assert found.cause(last) is Cause.GROWTH


def detector(data_limit_bytes=None, gpu_limit_bytes=None):
    return LeakDetector(data_limit_bytes=data_limit_bytes, gpu_limit_bytes=gpu_limit_bytes)


def after(steps, kept, *, free=60 * GIB):
    """Return a detector that has seen a process take steps on a GPU, and the leaks it reported."""
    found = detector(gpu_limit_bytes=10 * GIB)
    leaks = []
    for step in range(1, steps + 1):
        memory = on_card(allocated_bytes=kept(step), peak_allocated_bytes=kept(step) + MIB,
                         reserved_bytes=kept(step), free_bytes=free)  # fmt: skip
        report = reported("step", step=step, memory=memory, shapes={"input_ids": [4, 512]}).report
        leaks.append(found.update(report))
    return found, [leak for leak in leaks if leak is not None]


def oom(**fields):
    return reported("oom", **fields).report


def test_a_leak_is_reported_once_while_its_forecast_stays():
    _, leaks = after(60, lambda step: GIB + step * 64 * MIB)
    assert [leak.bytes_per_step for leak in leaks] == [64 * MIB]
    assert leaks[0].limit_bytes == 10 * GIB
    assert leaks[0].forecast_step == pytest.approx(9 * GIB / (64 * MIB), abs=1)


def test_a_leak_is_reported_again_when_its_forecast_moves():
    _, leaks = after(60, lambda step: GIB + (step + max(0, step - 20) * 3) * 64 * MIB)
    assert len(leaks) > 1
    assert leaks[-1].forecast_step < leaks[0].forecast_step


def test_without_a_gpu_it_is_the_private_data_under_a_cap_and_the_resident_set_without():
    for limit, bytes_per_step in ((64 * GIB, 64 * MIB), (None, 32 * MIB)):
        found = detector(data_limit_bytes=limit)
        leaks = []
        for step in range(1, 20):
            memory = {"rss_bytes": GIB + step * 32 * MIB, "peak_rss_bytes": None,
                      "data_bytes": GIB + step * 64 * MIB, "cuda": []}  # fmt: skip
            leaks.append(found.update(reported("step", step=step, memory=memory).report))
        assert [leak.bytes_per_step for leak in leaks if leak] == [bytes_per_step]


def test_an_oom_of_a_leaking_process_is_put_down_to_the_leak():
    found, _ = after(20, lambda step: GIB + step * 64 * MIB)
    assert found.cause(oom(shapes={"input_ids": [4, 512]})) is Cause.GROWTH
    assert found.cause(oom(pid=8, shapes={"input_ids": [4, 512]})) is Cause.UNKNOWN


def test_an_oom_with_a_far_larger_batch_is_put_down_to_the_batch():
    found, _ = after(20, lambda _step: GIB)
    assert found.cause(oom(shapes={"input_ids": [4, 4096]})) is Cause.OUTLIER
    assert found.cause(oom(shapes={"input_ids": [4, 520]})) is Cause.UNKNOWN


@pytest.mark.parametrize(
    ("free", "reserved", "allocated", "cause"),
    [
        (1 * GIB, 20 * GIB, 20 * GIB, Cause.OTHER_PROCESS),
        (1 * GIB, 78 * GIB, 70 * GIB, Cause.FRAGMENTATION),
        (1 * GIB, 78 * GIB, 77 * GIB, Cause.UNKNOWN),
        (None, 20 * GIB, 20 * GIB, Cause.UNKNOWN),
    ],
)
def test_an_oom_on_a_full_card_is_put_down_to_what_fills_it(free, reserved, allocated, cause):
    memory = on_card(
        free_bytes=free, reserved_bytes=reserved, allocated_bytes=allocated, total_bytes=80 * GIB
    )
    assert detector().cause(oom(memory=memory, requested_bytes=2 * GIB)) is cause
