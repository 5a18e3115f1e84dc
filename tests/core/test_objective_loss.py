"""What the arithmetic counts for a preference loss, term by term."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oomguard.estimate.formats import Formats
from oomguard.estimate.objective_loss import ObjectiveLoss
from oomguard.job.memory_settings import Head, Objective, Tiles
from oomguard.job.unmodelled import TrainingMethod

HALF = Formats(base_bytes=2, trained_bytes=2, computed_bytes=2, autocast=False)
MIXED = Formats(base_bytes=4, trained_bytes=4, computed_bytes=2, autocast=True)
TILED = Objective(method=TrainingMethod.DPO, rows=2, tiles=Tiles(tokens=4096, words=32768))
LOSS = ObjectiveLoss(
    objective=TILED, tokens=8192, hidden=1024, vocabulary=100_000, formats=HALF, trains_head=False
)


def test_tiles_replace_the_logits():
    selected, tile = 8192 * 1024 * 2, 4096 * 32768 * 2
    assert LOSS.forward == selected + tile
    assert LOSS.backward == selected + tile + 8192 * 1024 * (4 + 2)
    assert LOSS.reference == 2 * selected + tile


def test_a_trained_head_has_its_gradient_summed_in_fp32_and_cast():
    trained = replace(LOSS, trains_head=True)
    assert trained.backward - LOSS.backward == 100_000 * 1024 * (4 + 2)


def test_under_autocast_a_tile_is_the_product_of_casts():
    loss = replace(LOSS, formats=MIXED, tokens=2048)
    cast = (2048 + 32768) * 1024 * 2
    assert loss.forward == 2048 * 1024 * 4 + 2048 * 32768 * 2 + cast


def test_a_score_is_one_number_for_a_token():
    score = Objective(method=TrainingMethod.REWARD, rows=2, head=Head.SCORE)
    assert replace(LOSS, objective=score).forward == 8192 * (2 + 4)


@pytest.mark.parametrize(("sizes", "forward", "backward"), [((8, 12), 8, 12), (None, None, None)])
def test_whole_logits_cost_what_the_framework_copies(sizes, forward, backward):
    whole = Objective(method=TrainingMethod.DPO, logit_bytes=sizes, reference_logit_bytes=6)
    loss = replace(LOSS, objective=whole)
    logits = 8192 * 100_000
    assert loss.forward == (forward and forward * logits)
    assert loss.backward == (backward and backward * logits)


def test_a_reference_comes_while_the_policys_logits_stand():
    whole = Objective(method=TrainingMethod.DPO, logit_bytes=(8, 12), reference_logit_bytes=12)
    assert replace(LOSS, objective=whole).reference == (8 + 12) * 8192 * 100_000
