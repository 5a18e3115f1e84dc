"""How the monitor divides a batch and learns what fits, on shapes alone."""

from __future__ import annotations

import math
import sys
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard import monitor

sys.path.append(str(monitor.PATH))
from oomguard_monitor.split import FIRST_WAIT, Budget, divide
from oomguard_monitor.split_accounts import Gradients
from oomguard_monitor.split_loss import (
    LABELS,
    ROWS,
    SHIFTED_LABELS,
    SUM,
    NotAdditiveError,
    measure,
    weigh,
)

lengths = st.lists(st.integers(1, 4096), min_size=1, max_size=64)


def cost(part: list[int], of: list[int]) -> int:
    return len(part) * max(of[row] for row in part)


@given(lengths, st.integers(1, 1 << 18))
def test_the_parts_hold_every_row_once_and_each_fits_or_is_a_row_alone(of, limit):
    parts = divide(of, limit)
    assert sorted(row for part in parts for row in part) == list(range(len(of)))
    assert all(cost(part, of) <= limit or len(part) == 1 for part in parts)
    assert all(part == sorted(part) for part in parts)


@given(lengths, st.integers(1, 1 << 18))
def test_the_longest_row_is_in_the_first_part_and_no_smaller_limit_would_do(of, limit):
    parts = divide(of, limit)
    assert max(of) in [of[row] for row in parts[0]]
    largest = max(cost(part, of) for part in parts)
    if largest > max(of):
        assert len(divide(of, largest - 1)) > len(parts)


def test_an_outlier_is_alone_and_its_neighbours_stay_together():
    assert divide([60, 60, 900, 60], 1000) == [[2], [0, 1, 3]]


def test_rows_of_one_length_keep_their_order_in_even_parts():
    assert divide([256] * 8, 6 * 256) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@given(st.integers(1, 1 << 16), st.lists(st.integers(1, 1 << 17), max_size=60))
def test_a_bound_holds_from_the_first_step_and_is_never_raised(most, tokens):
    budget = Budget(most)
    assert budget.limit == most
    for one in tokens:
        budget.passed(one)
        for _ in range(FIRST_WAIT):
            budget.finished_step()
        assert budget.limit == most


class Machine:
    """Fits what it fits, and runs batches until they pass, as the monitor does."""

    def __init__(self, fits: int) -> None:
        self.fits, self.budget, self.failures = fits, Budget(), 0

    def step(self, of: list[int]) -> list[list[int]]:
        for _ in range(64):
            limit = self.budget.limit
            whole = [list(range(len(of)))]
            parts = whole if limit is None or cost(whole[0], of) <= limit else divide(of, limit)
            if all(self._runs(cost(part, of)) for part in parts):
                if len(parts) > 1:
                    self.budget.finished_step()
                return parts
        raise AssertionError("it never ends")

    def _runs(self, tokens: int) -> bool:
        if tokens > self.fits:
            self.failures += 1
            self.budget.failed(tokens)
            return False
        self.budget.passed(tokens)
        return True


@given(st.lists(lengths, min_size=1, max_size=8), st.integers(4096, 1 << 18))
def test_any_batch_whose_rows_fit_alone_passes_after_few_failures(batches, fits):
    machine = Machine(fits)
    for of in batches:
        before = machine.failures
        machine.step(of)
        assert machine.failures - before <= 18  # halvings of 2**18 tokens


def test_what_has_fitted_is_tried_before_less():
    machine = Machine(8 * 512)
    machine.step([512] * 8)
    assert [len(part) for part in machine.step([512] * 16)] == [8, 8]
    assert machine.failures == 1


def test_a_limit_that_lasts_costs_ever_fewer_failures():
    machine = Machine(8 * 512)
    for _ in range(1000):
        machine.step([512] * 16)
    assert machine.failures <= 8


def test_after_one_bad_moment_batches_are_whole_again():
    machine = Machine(16 * 512)
    machine.step([512] * 16)
    machine.fits = 6 * 512
    assert len(machine.step([512] * 16)) == 4
    machine.fits = 16 * 512
    steps = [len(machine.step([512] * 16)) for _ in range(6 * FIRST_WAIT)]
    assert steps[-1] == 1


class FakeRows:
    """Rows with this many labels each, one of which is that of the first token."""

    def __init__(self, labels: list[int]) -> None:
        self.labels, self.count = labels, len(labels)

    def labelled(self, *, shifted: bool) -> list[int]:
        return [count - shifted for count in self.labels]

    def lengths(self) -> list[int]:
        return list(self.labels)

    def take(self, rows: list[int], _width: int) -> list[int]:
        return rows


labelled = st.lists(st.integers(2, 500), min_size=2, max_size=16)


#: Whatever whole numbers their roots are multiplied by, no two are the same.
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)


def loss_of(rows: FakeRows, way: str):
    """Return the loss of a batch whose row `n` has the root of a prime on each of its labels.

    So no two rows have the same loss, which would not show how they add up.
    """

    def loss(batch: list[int]) -> float:
        counts = [1] * rows.count if way == ROWS else rows.labelled(shifted=way == SHIFTED_LABELS)
        total = 100.0 if way == SUM else sum(counts[row] for row in batch)
        return sum(math.sqrt(PRIMES[row]) * counts[row] for row in batch) / total

    return loss


@given(labelled, st.sampled_from([SUM, SHIFTED_LABELS, LABELS, ROWS]), st.data())
def test_the_measured_weights_join_the_losses_of_any_parts_to_that_of_the_whole(labels, way, data):
    rows = FakeRows(labels)
    loss = loss_of(rows, way)
    try:
        measured = measure(rows, loss, tolerance=1e-9, expected=None)
    except NotAdditiveError:  # two ways agree on the pair, and would not on the batch
        assert way != SUM
        return
    parts = divide(labels, data.draw(st.integers(1, sum(labels))))
    joined = sum(
        w * loss(part) for w, part in zip(weigh(rows, parts, measured), parts, strict=True)
    )
    assert joined == pytest.approx(loss(list(range(rows.count))))


def test_a_loss_that_compares_rows_is_refused():
    with pytest.raises(NotAdditiveError):
        measure(FakeRows([5, 9]), lambda batch: 1.0 + len(batch) ** 3, tolerance=1e-3, expected=SUM)


def test_equal_losses_of_two_rows_show_nothing():
    """A mean over all rows, and one that sorts them, are the same number then."""
    rows = FakeRows([5, 5, 5])
    with pytest.raises(NotAdditiveError, match="too close"):
        measure(rows, lambda _batch: 0.7, tolerance=1e-5, expected=None)
    assert measure(rows, lambda _batch: 0.7, tolerance=1e-5, expected=ROWS) == ROWS


def test_rows_without_padding_fill_a_part_by_their_sum():
    assert divide([900, 60, 60, 60], 1000, padded=False) == [[0], [1, 2, 3]]
    assert divide([60] * 4, 120, padded=False) == [[0, 1], [2, 3]]


def test_what_is_expected_is_refused_where_it_does_not_add_up():
    rows = FakeRows([5, 9, 20])
    assert measure(rows, loss_of(rows, LABELS), tolerance=1e-9, expected=SUM) == LABELS


class Parameter:
    """Stands in for one of torch's."""

    def __init__(self) -> None:
        self.grad: float | None = None
        self.requires_grad = True


class Trained:
    """Stands in for a model of parameters, each of which is trained."""

    def __init__(self, count: int) -> None:
        self.walks = 0
        self.own = [Parameter() for _ in range(count)]

    def parameters(self):
        self.walks += 1
        return iter(self.own)


def test_gradients_are_seen_in_each_step_and_a_model_is_walked_once():
    model, other = Trained(3), Trained(3)
    gradients = Gradients(model)
    assert not any(gradients.are_there() for _ in range(5))
    assert model.walks == 1
    model.own[2].grad = 1.0
    assert gradients.are_there()
    model.own[2].requires_grad = False  # frozen since: not part of the sum
    assert not gradients.are_there()
    assert (gradients.are_of(model), gradients.are_of(other)) == (True, False)


def test_all_gradients_of_a_failed_step_are_dropped_but_none_that_may_be_older():
    model = Trained(3)
    gradients = Gradients(model)
    for one in model.own:
        one.grad = 1.0
    gradients.drop()
    assert [one.grad for one in model.own] == [None] * 3
    model.own += Trained(1).own
    gradients.drop()
    model.own[0].grad = model.own[3].grad = 1.0
    with pytest.raises(RuntimeError, match="other parameters"):
        gradients.drop()
    assert model.own[0].grad == 1.0


def test_parameters_that_a_model_has_lost_are_not_kept_alive():
    model = Trained(2)
    gradients = Gradients(model)
    alive = weakref.ref(model.own.pop())
    assert alive() is None
    assert not gradients.are_there()
