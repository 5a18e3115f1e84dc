"""The monitor's counter: what loaders draw, fetch and train on, without any framework."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest

from oomguard import monitor

sys.path.insert(0, str(monitor.PATH))
counting = importlib.import_module("oomguard_monitor.counting")
first_loss = importlib.import_module("oomguard_monitor.first_loss")
sys.path.remove(str(monitor.PATH))


class Tensor:
    """Only a shape: counting reads nothing else of it."""

    def __init__(self, *shape):
        self.shape = shape


class BatchSampler:
    batch_size, drop_last = 8, False

    def __len__(self):
        return 3


class PackSampler(BatchSampler):
    """Draws packs."""


class Iterator:
    """An iterator of a DataLoader as the counter sees it."""

    def __init__(self, counter, *, kind=0, sampler=BatchSampler):
        self.counter, self._dataset_kind, self._index_sampler = counter, kind, sampler()
        self._dataset = range(20)

    def draw(self, samples):
        self.counter.drew(self, list(range(samples)))

    def fetch(self, rows, *, evaluating=False):
        batch = {"input_ids": Tensor(rows, 5)}
        self.counter.fetched(self, batch, evaluating=evaluating)
        return batch

    def next(self, samples=8, rows=None, *, evaluating=False):
        self.draw(samples)
        return self.fetch(samples if rows is None else rows, evaluating=evaluating)


@pytest.fixture
def counter():
    return counting.Counter()


def shown(counter):
    found = counter.window()
    return found["samples"], found["micro_batches"], found["short"], found["counted_by"]


def test_the_trainers_batches_are_counted_as_the_sampler_drew_them(counter):
    loader = Iterator(counter)
    for _ in range(2):
        for batch in [loader.next(rows=16), loader.next(rows=16)]:  # pairs
            counter.trains_on(batch)
            counter.went_back()
        assert shown(counter) == (16, 2, False, "trainer")


def test_a_packed_row_is_as_many_samples_as_were_drawn(counter):
    counter.trains_on(Iterator(counter).next(rows=1))
    assert shown(counter) == (8, 1, False, "trainer")


def test_a_batch_that_is_fetched_ahead_counts_in_the_next_step(counter):
    loader = Iterator(counter)
    first, second = loader.next(), loader.next(4)
    counter.trains_on(first)
    assert shown(counter) == (8, 1, False, "trainer")
    counter.ended()
    counter.trains_on(second)
    assert shown(counter) == (4, 1, True, "trainer")


def test_workers_draw_ahead(counter):
    loader = Iterator(counter)
    for samples in (8, 8, 4):
        loader.draw(samples)
    for samples in (8, 8):
        loader.fetch(samples)
        counter.went_back()
    assert shown(counter) == (16, 2, False, "loader")


def test_evaluation_batches_do_not_count(counter):
    training, evaluation = Iterator(counter), Iterator(counter)
    training.next()
    for _ in range(3):
        evaluation.next(2, evaluating=True)
    counter.went_back()
    assert shown(counter) == (8, 1, False, "loader")


def test_several_backward_passes_over_one_batch_count_it_once(counter):
    Iterator(counter).next()
    for _ in range(4):
        counter.went_back()
    assert shown(counter) == (8, 4, False, "loader")


def test_a_step_without_a_batch_of_its_own_is_not_counted(counter):
    Iterator(counter).next()
    counter.went_back()
    counter.window()
    counter.went_back()
    assert shown(counter) == (None, 1, False, None)


def test_batches_of_two_loaders_in_one_step_are_not_counted(counter):
    one, other = Iterator(counter), Iterator(counter)
    one.next()
    other.next()
    counter.went_back()
    found = counter.window()
    assert found["samples"] is None
    assert "several loaders" in found["unclear"]


def test_a_loop_that_skips_batches_is_not_counted_from_then_on(counter):
    loader = Iterator(counter)
    for _ in range(3):
        loader.next()
    counter.went_back()
    for _ in range(2):
        assert counter.window()["samples"] is None
        loader.next()
        counter.went_back()


def test_a_batch_that_is_another_than_the_fetched_one_is_not_sure(counter):
    Iterator(counter).next(rows=8)
    counter.trains_on({"input_ids": Tensor(4, 5)})
    assert shown(counter) == (4, 1, False, "rows")


def test_packs_and_token_budgets_are_not_sure(counter):
    counter.trains_on(Iterator(counter, sampler=PackSampler).next())
    assert shown(counter) == (8, 1, False, "rows")


def test_the_last_batch_of_an_iterable_dataset_is_short(counter):
    loader = Iterator(counter, kind=1)
    loader.draw(8)
    loader.fetch(3)
    counter.went_back()
    assert counter.window()["short"]


def test_without_a_loader_the_rows_of_the_forward_pass_count(counter):
    rows = counter.forward = counting.ForwardRows()
    model, layer = SimpleNamespace(training=True), SimpleNamespace(training=True)
    for _ in range(2):
        assert rows.enter(model, (Tensor(6, 5),), trains=True) == 6
        rows.enter(layer, (Tensor(30, 5),), trains=True)
        rows.leave(layer, object())
        rows.leave(model, object())
        counter.went_back()
    assert shown(counter) == (12, 2, False, "forward")


def test_a_model_that_is_called_twice_before_it_goes_back_is_not_sure(counter):
    rows = counter.forward = counting.ForwardRows()
    model = SimpleNamespace(training=True)
    for _ in range(2):
        rows.enter(model, (Tensor(6, 5),), trains=True)
        rows.leave(model, object())
    counter.went_back()
    assert counter.window()["samples"] is None


def test_a_call_that_failed_is_forgotten(counter):
    rows = counter.forward = counting.ForwardRows()
    for size in (20, 14):
        model = SimpleNamespace(training=True)
        rows.enter(model, (Tensor(size, 5),), trains=True)
        rows.leave(model, None if size == 20 else object())
    counter.went_back()
    assert counter.window()["samples"] == 14


def test_a_model_that_is_evaluated_does_not_count(counter):
    rows = counter.forward = counting.ForwardRows()
    assert rows.enter(SimpleNamespace(training=False), (Tensor(6, 5),), trains=True) is None
    assert rows.enter(SimpleNamespace(training=True), (Tensor(6, 5),), trains=False) is None


def test_the_size_of_an_epoch_is_that_of_its_loader(counter):
    found = counting.epoch_of(Iterator(counter))
    assert found == {"dataset_samples": 20, "batches": 3, "drop_last": False}
    assert counting.epoch_of(Iterator(counter, kind=1))["batches"] is None


class Base:
    model_accepts_loss_kwargs = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return 0


class Mean(Base):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs)


class MaybePasses(Base):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if inputs:
            return model(**inputs)
        return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)


class Divides(Base):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs) / num_items_in_batch


class Forwards(Base):
    def compute_loss(self, model, inputs, **kwargs):
        return model(**inputs, **kwargs)


class Divided(Mean):
    model_accepts_loss_kwargs = False


@pytest.mark.parametrize(
    ("trainer", "ignores"),
    [(Base, False), (Mean, True), (MaybePasses, True), (Divides, False), (Forwards, False),
     (Divided, False)],
)  # fmt: skip
def test_a_loss_that_ignores_the_number_of_items_is_found(trainer, ignores):
    base = Base.compute_loss
    assert first_loss.ignores_items(trainer(), base, reached_base=False) == ignores
    assert not first_loss.ignores_items(trainer(), base, reached_base=True)
