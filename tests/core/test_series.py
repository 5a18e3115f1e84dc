"""Series of memory and loss: what they are of, and that their length is bounded."""

from __future__ import annotations

import pytest

from oomguard.evidence.verdict import Phase
from oomguard.run.printed_loss import losses_in
from oomguard.run.series import POINTS, Thinned, series_of, thinned
from reported import on_card, reported


def step(t: float, number: int, **sizes: int | None):
    return reported("step", t=t, step=number, phase="forward", memory=on_card(**sizes)).report


def test_a_track_is_what_the_allocator_reserved_by_the_time_since_the_first_report():
    series = series_of(
        2,
        [
            reported("hello", t=100.0, phase="load").report,
            step(103.0, 1, reserved_bytes=5, total_bytes=80),
            step(104.0, 2, reserved_bytes=9, total_bytes=80),
        ],
        private_data=False,
    )
    (track,) = series.tracks
    assert (track.device, track.points, track.capacity_bytes) == (0, ((3.0, 5), (4.0, 9)), 80)
    spans = [(one.phase, one.begin, one.end) for one in series.phases[7]]
    assert spans == [(Phase.LOAD, 0.0, 3.0), (Phase.FORWARD, 3.0, 4.0)]


@pytest.mark.parametrize(("private", "expected"), [(True, 30), (False, 10)])
def test_the_host_is_measured_as_its_limit_counts(private, expected):
    memory = {
        "rss_bytes": 10, "peak_rss_bytes": 11, "data_bytes": 20, "peak_data_bytes": 30, "cuda": [],
    }  # fmt: skip
    report = reported("step", memory=memory).report
    (track,) = series_of(1, [report], private_data=private).tracks
    assert track.device is None
    assert track.points == ((0.0, expected),)


def test_a_failed_allocation_is_a_mark_on_the_device_that_it_failed_on():
    memory = {**on_card(reserved_bytes=7), "rss_bytes": 3}
    report = reported("oom", device="cuda", memory=memory).report
    host, card = series_of(1, [report], private_data=False).tracks
    assert (host.device, host.failed) == (None, ())
    assert (card.device, card.failed) == (0, ((0.0, 7),))


@pytest.mark.parametrize("count", [1, 2, POINTS, 2 * POINTS + 1, 100_000])
def test_a_series_is_bounded_in_order_and_keeps_its_highest_point(count):
    series = Thinned(max)
    for at in range(count):
        series.add(at, 1000 if at == count // 3 else at % 7)
    points = series.points
    assert len(points) <= min(count, 2 * POINTS)
    assert max(value for _, value in points) == 1000
    assert [at for at, _ in points] == sorted({at for at, _ in points})
    assert len(thinned(points, 50, max)) <= 50
    assert max(value for _, value in thinned(points, 50, max)) == 1000


def test_the_mean_of_a_thinned_loss_stays():
    points = thinned([(at, float(at % 2)) for at in range(64)], 8, lambda a, b: (a + b) / 2)
    assert [value for _, value in points] == [0.5] * 8


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{'loss': 1.5, 'step': 3}", ("step", 3.0, 1.5)),
        ("25%|x| 1/4 [00:22] {'loss': '10.4', 'grad_norm': '0.3', 'epoch': '0.5'}",
         ("epoch", 0.5, 10.4)),
        ("{'loss': -1.5e-08, 'grad_norm': nan, 'epoch': 1e-3}", ("epoch", 0.001, -1.5e-8)),
        ("Epoch 1 | iter 2 step 2 | loss train: 10.538, val: n/a |", ("step", 2.0, 10.538)),
        ("{'train_loss': 10.41, 'epoch': 1}", None),
        ("{'eval_loss': 1, 'epoch': 1}", None),
        ("{'loss': 1.2.3, 'epoch': 1}", None),
        ("{'loss': 'no'}", None),
        ("self.loss = step", None),
    ],
)  # fmt: skip
def test_the_loss_is_read_as_frameworks_print_it(line, expected):
    assert list(losses_in(line)) == ([expected] if expected else [])


def test_only_the_losses_of_one_unit_make_a_curve():
    told = [("epoch", 0.5, 2.0), ("step", 7.0, 9.0), ("epoch", 1.0, 1.0)]
    series = series_of(1, [], told, private_data=False)
    assert (series.loss_unit, series.losses) == ("epoch", ((0.5, 2.0), (1.0, 1.0)))
