from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.run.leak import MOST_POINTS, Watch
from oomguard.units import GIB, MIB


def watched(kept, *, steps, within=lambda _step: 100 * MIB, limit=None):
    watch = Watch(limit_bytes=limit)
    for step in range(1, steps + 1):
        watch.step(step, kept_bytes=kept(step), peak_bytes=kept(step) + within(step), batch=1024)
    return watch


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
    watch = watched(lambda step: step * MIB, steps=20_000)
    assert len(watch._points) <= MOST_POINTS
    assert watch.growth().bytes_per_step == MIB


def test_a_batch_far_larger_than_all_before_is_an_outlier():
    watch = watched(lambda _step: GIB, steps=10)
    assert watch.is_outlier(2048)
    assert not watch.is_outlier(1100)
    assert not watched(lambda _step: GIB, steps=2).is_outlier(2048)
