"""The dry run of torchtune's own models: against its recipes on the CPU, over depth, in a plan."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from environments import environment

import oomguard.tracer
from oomguard.cli.main import main
from oomguard.units import GIB

pytestmark = pytest.mark.frameworks

RECIPE = Path(__file__).parents[2] / "recipes" / "torchtune" / "train.yaml"
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 8,
        "lora_alpha": 16}  # fmt: skip
SHAPE = {"vocab_size": 4096, "num_layers": 7, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 512,
         "max_seq_len": 4096, "intermediate_dim": 1024}  # fmt: skip
FULL = {"_component_": "torchtune.models.llama2.llama2", **SHAPE}
ADAPTED = {"_component_": "torchtune.models.llama2.lora_llama2", **SHAPE, **LORA}
PLAN = {"micro_batch": 2, "sequence_length": 256, "precision": "bf16-true", "checkpointing": True,
        "tuning": "lora", "loss_kernel": "fused", "optimizer": "torch.optim.AdamW"}  # fmt: skip
PACKED = {"quantization": "nf4-double"}
IN_BACKWARD = {"step_in_backward": True}
EVERY = {"full_depth": True}


def run(*arguments, stdin=""):
    done = subprocess.run(
        [str(environment("torchtune")), "-W", "ignore", *arguments], input=stdin, text=True,
        capture_output=True, check=False,
        env=os.environ | {"PYTHONPATH": oomguard.tracer.PYTHONPATH},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def ask(config, *variants):
    document = {
        "v": 1, "model": {"family": "torchtune", "config": config},
        "variants": [
            {"id": str(number), "plan": PLAN | plan, "recipe": {"loop": "sums-losses"} | recipe}
            for number, (plan, recipe) in enumerate(variants)
        ],
    }  # fmt: skip
    return json.loads(run("-m", "oomguard_tracer", stdin=json.dumps(document)))["results"]


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(
            (
                "torchtune qlora checkpointing, bf16, chunked",
                "torchtune full bf16, optimizer in backward, chunked",
            ),
            id="two",
        ),
        pytest.param((), id="all", marks=pytest.mark.extended),
    ],
)
def test_torchtunes_recipes_peak_within_two_percent_of_their_traces(cases):
    script = Path(__file__).with_name("torchtune_truth.py")
    found = json.loads(run(str(script), *cases).splitlines()[-1])
    assert len(found) == (len(cases) or 12)
    for case in found:
        assert "error" not in case, (case["name"], case.get("error"))
        assert case["traced_bytes"] == pytest.approx(case["real_bytes"], rel=0.02), case["name"]


@pytest.mark.extended
def test_a_compiled_layer_keeps_what_pytorchs_partitioner_lets_it_keep():
    script = Path(__file__).with_name("compiled_layers.py")
    found = json.loads(run(str(script)).splitlines()[-1])
    assert [case["name"] for case in found] == ["full", "lora"]
    for case in found:
        assert case["traced_bytes"] == pytest.approx(case["real_bytes"], rel=0.01), case["name"]


def same_at_full_depth(few, every):
    assert few["estimate"]["method"] == "trace-extrapolated"
    assert every["estimate"]["method"] == "trace"
    return few["estimate"] | {"method": "trace"} == every["estimate"]


def test_each_choice_takes_less_than_the_one_before_and_few_layers_say_the_same_as_all():
    """Unpacking by operators takes int64 indices: 14 bytes a number, where a kernel takes 2."""
    packed, every, compiled, offloaded = ask(
        ADAPTED,
        (PACKED, {}),
        (PACKED, EVERY),
        (PACKED, {"compiled": True}),
        (PACKED | {"offload": ["activations"]}, {"compiled": True}),
    )
    assert same_at_full_depth(packed, every)
    sizes = [a["estimate"]["allocated_bytes"] for a in (packed, compiled, offloaded)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("path", ["os.system", "torchtune.modelsx.build", "system"])
def test_no_code_runs_that_a_config_names(path, tmp_path):
    ran = tmp_path / "ran"
    (answer,) = ask({"_component_": path, "command": f"touch {ran}"}, ({}, {}))
    assert answer["error"]["kind"] == "unsupported"
    assert not ran.exists()


def test_a_step_in_backward_is_alike_in_every_layer():
    plan = {"tuning": "full", "checkpointing": False}
    assert same_at_full_depth(*ask(FULL, (plan, IN_BACKWARD), (plan, EVERY | IN_BACKWARD)))


def test_its_recipe_for_8b_is_planned_by_a_trace_of_its_own_model(capsys, monkeypatch, tmp_path):
    python = str(environment("torchtune"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["plan", str(RECIPE), "--gpu", "4090", "--python", python, "--json"]
    assert main([*words, "--ladder", "gradient_checkpointing"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["asked"]["fits"] == "no"
    assert found["asked"]["estimate"]["method"].startswith("trace")
    weights = found["asked"]["estimate"]["terms"]["weights"]
    # 16 bits a number, and the rotary table of 131072 positions in fp32.
    table = 131072 * 128 * 4
    assert weights == pytest.approx(2 * 8030261248 + table, rel=1e-3)
    assert weights / GIB == pytest.approx(15.02, abs=0.01)
