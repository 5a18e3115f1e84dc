"""What the arithmetic knows of a model's layers, and what it says that it leaves out."""

from __future__ import annotations

import pytest

from oomguard.catalogue.shipped import carried
from oomguard.estimate.architecture import from_config
from oomguard.estimate.memory import MemoryEstimate
from oomguard.estimate.unmodelled_layers import KNOWN, unmodelled_layers
from oomguard.predict.forecast import missing_from

WHOLE = [one for one in carried() if unmodelled_layers(one.config) is None]


@pytest.mark.parametrize("one", WHOLE, ids=lambda one: one.name)
def test_a_model_that_is_wholly_modelled_has_as_many_parameters_as_its_shape(one):
    """Towers of images are approximated: they may be off by a tenth."""
    shape = from_config(one.config)
    tower = shape.tower.parameters if shape.tower else 0
    counted = one.architecture.parameters
    assert shape.parameters == pytest.approx(counted, abs=0.005 * counted + 0.4 * tower)


@pytest.mark.parametrize(
    ("kind", "part", "traced"),
    [
        ("qwen3_5", "linear attention", False),
        ("falcon_h1", "Mamba", False),
        ("lfm2", "convolutions", True),
        ("gpt_oss", "sinks", True),
        ("gemma4", "embeddings per layer", True),
        ("mllama", "cross-attention", False),
        ("modernbert", "encoder", False),
        ("whisper", "cross-attention", False),
    ],
)
def test_what_a_type_has_beside_attention_and_mlp_is_named(kind, part, traced):
    found = unmodelled_layers({"model_type": kind})
    assert found is not None
    assert part in found.effect
    assert found.traced is traced


@pytest.mark.parametrize("config", [{"model_type": "brand_new"}, {}])
def test_a_type_that_is_not_known_is_named_where_nothing_was_traced(config):
    found = unmodelled_layers(config)
    assert found is not None
    assert found.traced


def test_layers_of_several_kinds_are_named_whatever_the_type():
    for config in ({"attn_layer_period": 8}, {"text_config": {"interleave_moe_layer_step": 2}}):
        found = unmodelled_layers({"model_type": "llama", **config})
        assert found is not None
        assert "several kinds" in found.effect


def test_no_type_is_both_known_and_named():
    assert all(unmodelled_layers({"model_type": kind}) is None for kind in KNOWN)


@pytest.mark.parametrize(
    ("method", "named"), [("analytic", 1), ("trace", 0), ("analytic-scaled", 0)]
)
def test_a_type_that_is_not_known_is_missing_from_an_analytic_estimate_alone(method, named):
    unknown = unmodelled_layers({"model_type": "brand_new"})
    assert unknown is not None
    estimate = MemoryEstimate(
        allocated_bytes=1,
        reserved_bytes=1,
        low_bytes=1,
        expected_bytes=1,
        high_bytes=1,
        terms={},
        method=method,
    )
    assert len(missing_from(estimate, [unknown])) == named
