"""What the monitor holds for passed, and where it leaves ranks alone, without torch."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard import monitor

sys.path.append(str(monitor.PATH))
from oomguard_monitor.in_place_ranks import Passed, taken_by, why_not_on_ranks

taken = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.booleans())


@given(st.lists(taken), taken)
def test_a_batch_is_covered_by_one_that_took_at_least_as_much_of_everything(batches, batch):
    passed = Passed()
    for one in batches:
        passed.add(one)
    larger = [one for one in batches if all(a >= b for a, b in zip(one, batch, strict=True))]
    assert passed.covers(batch) == bool(larger)


def test_what_passed_before_the_first_step_of_the_optimizer_is_forgotten():
    passed = Passed()
    passed.add((1, 1, 1, False))
    passed.forget()
    assert not passed.covers((1, 1, 1, False))


def tensor(*shape: int) -> SimpleNamespace:
    return SimpleNamespace(shape=shape)


def test_tokens_media_and_width_are_told_apart():
    batch = {
        "input_ids": tensor(4, 100), "labels": tensor(4, 100),
        "media": {"pixel_values": [tensor(50, 8)], "grid": tensor(2, 3)}, "names": ["a", "b"],
    }  # fmt: skip
    assert taken_by(batch, accumulated=False) == (400, 400 + 400 + 6, 100, False)
    assert taken_by("no batch", accumulated=True) == (0, 0, 0, True)


class DistributedDataParallel:
    """Has what is used of torch's."""

    require_backward_grad_sync = require_forward_param_sync = True
    find_unused_parameters = False
    no_sync = _check_sync_bufs_pre_fwd = _sync_buffers = reducer = None

    def __init__(self, **others: object) -> None:
        self.module = type("Llama", (), {"__module__": "transformers.models.llama"})()
        vars(self).update(others)


def trainer_of(module: str, **others: object) -> SimpleNamespace:
    kind = type("Own", (SimpleNamespace,), {"compute_loss": None, "__module__": module})
    state = SimpleNamespace(plugin_kwargs=others.pop("plugin", {}))
    accelerator = SimpleNamespace(gradient_state=state, **others.pop("accelerator", {}))
    return kind(accelerator=accelerator, **others)


def test_the_trainers_own_loss_is_computed_without_other_ranks():
    assert why_not_on_ranks(trainer_of("transformers.trainer"), DistributedDataParallel()) is None


@pytest.mark.parametrize(
    ("trainer", "model", "reason"),
    [
        ({}, SimpleNamespace(), "several ranks train a SimpleNamespace"),
        ({}, DistributedDataParallel(static_graph=True), "static graph"),
        ({}, DistributedDataParallel(mixed_precision=object()), "casts parameters"),
        ({}, DistributedDataParallel(buffer_hook=object()), "a hook exchanges buffers"),
        ({}, DistributedDataParallel(_join_config=SimpleNamespace(enable=True)), "end their data"),
        ({}, DistributedDataParallel(module=SimpleNamespace()), "the model may use"),
        ({"accelerator": {"parallelism_config": object()}}, None, "divided between the ranks"),
        ({"plugin": {"sync_each_batch": True}}, None, "after each micro batch"),
        ({"module": "trl.trainer.sft_trainer"}, None, "other ranks' outputs"),
        ({"compute_loss": len}, None, "other ranks' outputs"),
        ({"compute_loss_func": len}, None, "other ranks' outputs"),
    ],
)
def test_what_may_wait_for_other_ranks_is_left_alone(trainer, model, reason):
    words = {"module": "transformers.trainer", **trainer}
    found = why_not_on_ranks(trainer_of(**words), model or DistributedDataParallel())
    assert reason in str(found)


def test_another_version_of_it_is_left_alone():
    kind = type("DistributedDataParallel", (), {"no_sync": None})
    found = why_not_on_ranks(trainer_of("transformers.trainer"), kind())
    assert found == "this DistributedDataParallel has no reducer"
