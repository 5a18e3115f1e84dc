"""Mixtures of experts are counted in full, however their configs spell them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oomguard.estimate.architecture import from_config

MODELS = json.loads((Path(__file__).parents[1] / "data/experts.json").read_text())["models"]


@pytest.mark.parametrize("name", MODELS)
def test_all_experts_are_counted(name):
    counted = from_config(MODELS[name]["config"]).parameters
    assert counted == pytest.approx(MODELS[name]["parameters"], rel=0.015)


def test_latent_attention_has_its_own_matrices():
    names = {one.names[0] for one in from_config(MODELS["deepseek_v3"]["config"]).linears}
    assert {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"} <= names
