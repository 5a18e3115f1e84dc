"""What optimizers keep, against the states of the real ones, counted on one matrix."""

from __future__ import annotations

import pytest

from oomguard.job.optimizer import low_rank, states_of

#: Name, and the bytes of state for each number of a matrix of 512 x 1024 in fp32 and in bf16.
COUNTED = (
    ("adamw_torch", 8.0, 4.0),
    ("AdamW", 8.0, 4.0),
    ("torch.optim.AdamW", 8.0, 4.0),
    ("adagrad", 4.0, 2.0),
    ("rmsprop", 4.0, 2.0),
    ("sgd", 0.0, 0.0),
    ("adafactor", 0.0117, 0.0117),
    ("torch.optim.Adafactor", 0.0117, 0.0059),
    ("bitsandbytes.optim.AdamW", 8.0, 8.0),
    ("adamw_bnb_8bit", 2.0352, 2.0352),
    ("adamw_8bit", 2.0352, 2.0352),
    ("bitsandbytes.optim.AdamW8bit", 2.0352, 2.0352),
    ("lion_8bit", 1.0176, 1.0176),
    ("ademamix", 12.0, 12.0),
    ("ademamix_8bit", 3.0508, 3.0508),
    ("rmsprop_bnb", 4.0, 4.0),
    ("rmsprop_bnb_8bit", 1.0176, 1.0176),
    ("schedule_free_adamw", 8.0, 4.0),
    ("schedule_free_radam", 8.0, 4.0),
    ("schedule_free_sgd", 4.0, 2.0),
    ("stable_adamw", 8.0, 6.0),
    ("optimi_adamw", 8.0, 6.0),
    ("came_pytorch", 4.0234, 4.0234),
    ("grokadamw", 12.0, 6.0),
    ("torch.optim.Muon", 4.0, 2.0),
    ("adamw_torch_8bit", 2.0352, 2.0352),
    ("adamw_torch_4bit", 1.0628, 1.0628),
    ("ao_adamw_fp8", 2.0313, 2.0313),
    ("torchao.optim.AdamW8bit", 2.0352, 2.0352),
)


@pytest.mark.parametrize(("name", "wide", "half"), COUNTED)
def test_states_are_those_of_the_real_optimizer(name: str, wide: float, half: float) -> None:
    states = states_of(name)
    assert states is not None
    # Code tables of 8-bit states are counted too: on a real matrix they are nothing.
    assert states.bytes_each(4) == pytest.approx(wide, rel=0.03, abs=0.03)
    assert states.bytes_each(2) == pytest.approx(half, rel=0.03, abs=0.04)


@pytest.mark.parametrize(
    "name",
    [
        *("paged_adamw_32bit", "paged_adamw_8bit", "paged_lion_8bit", "paged_ademamix_8bit"),
        *("bitsandbytes.optim.PagedAdamW8bit", "bitsandbytes.optim.PagedAdamW"),
    ],
)
def test_paged_states_are_in_managed_memory(name: str) -> None:
    states = states_of(name)
    assert states is not None
    assert states.bytes_each(4) == 0


def test_lomo_keeps_nothing_and_adalomo_means_of_rows_and_columns() -> None:
    lomo, adalomo = states_of("lomo"), states_of("adalomo")
    assert lomo is not None
    assert adalomo is not None
    assert lomo.bytes_each(2) == 0 < adalomo.bytes_each(2) < 0.1


def test_a_projected_gradient_has_moments_of_its_longer_side_beside_the_projection() -> None:
    states = low_rank(64)  # galore-torch 1.0 on 512 x 1024: two moments of 64 x 1024, and 512 x 64
    assert states.values(512, 1024) == states.values(1024, 512) == 2 * 64 * 1024 + 512 * 64
    assert states.values(32, 1024) == 2 * 32 * 1024 + 32 * 32  # no rank is above the shorter side


@pytest.mark.parametrize(
    "name",
    [
        *("galore_adamw", "galore_adamw_8bit", "apollo_adamw"),
        *("muon", "dion", "adopt_adamw", "sophia", "prodigy", "adam_mini", "adamw_anyprecision"),
        *("torchao.optim.CPUOffloadOptimizer", "my.own.Optimizer", "q_apollo"),
        *("bitsandbytes.optim.LAMB", "flash_adamw", ""),
    ],
)
def test_an_optimizer_that_is_not_known_is_nobodys_adamw(name: str) -> None:
    assert states_of(name) is None


def test_the_trainer_keeps_eight_bit_states_of_embeddings_in_fp32() -> None:
    for name, more in (("adamw_8bit", 6), ("lion_8bit", 3), ("adamw_bnb_8bit", 6)):
        states = states_of(name)
        assert states is not None
        assert states.more_for_embeddings() == pytest.approx(more, rel=0.02)
    for name in ("adamw_torch", "paged_adamw_8bit", "adamw_torch_8bit", "lion_32bit"):
        states = states_of(name)
        assert states is not None
        assert states.more_for_embeddings() == 0


def test_adafactor_works_on_copies_of_one_tensor_in_fp32() -> None:
    states = states_of("adafactor")
    assert states is not None
    assert states.working_bytes(4) == 2 * 4
    assert states.working_bytes(2) == 4 * 4
    other = states_of("adamw_8bit")
    assert other is not None
    assert other.working_bytes(2) == 0
