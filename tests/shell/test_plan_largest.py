"""`oomguard plan --max` as a user calls it, against plans of configs with the values it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from oomguard.cli.main import main
from shapes import LLAMA_YAML

RECIPES = Path(__file__).parents[2] / "recipes"


pytestmark = pytest.mark.usefixtures("arithmetic")


@pytest.fixture
def plan(capsys, tmp_path):
    def run(text: str, *words: object, code: int = 0) -> dict:
        file = tmp_path / "train.yaml"
        file.write_text(text)
        assert main(["plan", str(file), *map(str, words), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def with_value(text: str, key: str, value: int) -> str:
    changed, count = re.subn(rf"(?m)^(\s*){key}: .*$", rf"\g<1>{key}: {value}", text)
    assert count == 1
    return changed


TRL = (RECIPES / "hf_trainer" / "trl.yaml").read_text()
LITGPT = (RECIPES / "litgpt" / "train.yaml").read_text()
#: Full rows with their rank in the file.
LLAMA = LLAMA_YAML + "lora_rank: 16\n"


@pytest.mark.parametrize(
    ("text", "gpu", "field", "key"),
    [
        (LLAMA, "a100-80", "micro_batch", "per_device_train_batch_size"),
        (LLAMA, "a100-80", "sequence_length", "cutoff_len"),
        (LLAMA, "h200", "lora_rank", "lora_rank"),
        (TRL, "h100", "micro_batch", "per_device_train_batch_size"),
        (TRL, "a40", "sequence_length", "max_length"),
        (TRL, "h100", "lora_rank", "lora_r"),
        (LITGPT, "a100-40", "sequence_length", "max_seq_length"),
    ],
)
def test_a_config_with_the_value_that_was_named_fits_and_with_one_more_it_does_not(
    plan, text, gpu, field, key
):
    found = plan(text, "--gpu", gpu, "--max", field)
    certain, possible = found["certain"]["value"], found["possible"]["value"]
    assert 1 <= certain < possible
    assert found["requested"]["plan"] == plan(text, "--gpu", gpu)["asked"]["plan"]
    verdicts = {
        value: plan(with_value(text, key, value), "--gpu", gpu)["asked"]["fits"]
        for value in (certain, certain + 1, possible, possible + 1)
    }
    assert verdicts[certain] == "yes"
    assert verdicts[possible + 1] == "no"
    assert {verdicts[certain + 1], verdicts[possible]} == {"unsure"}
    assert (found["certain"]["fits"], found["possible"]["fits"]) == ("yes", "unsure")
    assert found["certain"]["method"] == "analytic"


def test_another_micro_batch_is_another_global_batch_and_says_so(plan, capsys, tmp_path):
    found = plan(LLAMA, "--gpu", "h200", "--max", "micro_batch")
    for one in (found["certain"], found["possible"]):
        assert one["global_batch"] == one["value"] * one["plan"]["accumulation"]
        assert one["plan"]["accumulation"] == found["requested"]["plan"]["accumulation"] == 2
    assert (
        main(["plan", str(tmp_path / "train.yaml"), "--gpu", "h200", "--max", "micro_batch"]) == 0
    )
    text = capsys.readouterr().out
    value = found["certain"]["value"]
    assert f"The largest micro_batch that is certain to fit is {value}, and up to " in text
    assert f"micro_batch {value}, global batch {2 * value}: " in text
    assert "(requested: 8)" in text


def test_the_settings_to_write_are_named_and_give_that_plan(plan, capsys, tmp_path):
    """LitGPT states the global batch, so a larger micro batch alone would accumulate less."""
    found = plan(LITGPT, "--gpu", "h100", "--max", "micro_batch")
    certain = found["certain"]
    value = certain["value"]
    assert value > 1
    assert certain["settings"] == [
        f"train.global_batch_size: {8 * value}", f"train.micro_batch_size: {value}",
    ]  # fmt: skip
    text = with_value(LITGPT, "micro_batch_size", value)
    text = with_value(text, "global_batch_size", 8 * value)
    alone = plan(text, "--gpu", "h100")["asked"]
    assert (alone["plan"], alone["fits"]) == (certain["plan"], "yes")
    assert found["requested"]["settings"] == []
    assert (
        main(["plan", str(tmp_path / "train.yaml"), "--gpu", "h200", "--max", "micro_batch"]) == 0
    )
    assert re.search(
        r"(?m)^ {8}train.global_batch_size: \d+, train.micro_batch_size: \d+$",
        capsys.readouterr().out,
    )


def test_the_search_ends_at_the_tokens_that_the_model_is_made_for(plan):
    found = plan(LLAMA, "--gpu", "mi325x", "--max", "sequence_length")
    assert found["certain"]["value"] == found["searched_up_to"] == 8192
    assert any("made for" in note for note in found["notes"])


def test_images_are_searched_where_the_job_has_any(plan):
    recipe = (RECIPES / "llamafactory" / "qwen2_5_vl.yaml").read_text()
    found = plan(recipe, "--gpu", "mi325x", "--max", "image_pixels")
    assert found["certain"]["value"] >= found["requested"]["value"] == 262144
    error = plan(LLAMA, "--gpu", "h100", "--max", "image_pixels", code=2)["error"]
    assert "no image_pixels" in error["what"]
    assert "micro_batch, sequence_length, lora_rank" in error["next"]


def test_full_tuning_has_no_rank(plan):
    text = LLAMA.replace("finetuning_type: lora", "finetuning_type: full")
    assert (
        "no lora_rank" in plan(text, "--gpu", "h100", "--max", "lora_rank", code=2)["error"]["what"]
    )


def test_with_what_is_not_modelled_nothing_is_certain(plan, capsys, tmp_path):
    text = LLAMA + "mixture_of_depths: convert\n"
    found = plan(text, "--gpu", "h200", "--max", "micro_batch")
    assert found["certain"] is None
    assert found["possible"]["fits"] == "unsure"
    assert [one["key"] for one in found["unmodelled"]] == ["mixture_of_depths"]
    assert (
        main(["plan", str(tmp_path / "train.yaml"), "--gpu", "h200", "--max", "micro_batch"]) == 0
    )
    assert "With no micro_batch is it certain to fit; up to" in capsys.readouterr().out


def test_where_not_even_one_fits(plan, capsys, tmp_path):
    found = plan(LLAMA, "--gpu-memory", "4GiB", "--max", "micro_batch")
    assert (found["certain"], found["possible"]) == (None, None)
    words = ["plan", str(tmp_path / "train.yaml"), "--gpu-memory", "4GiB", "--max", "micro_batch"]
    assert main(words) == 0
    assert "not even with 1" in capsys.readouterr().out


def test_a_config_that_is_refused_has_no_certain_value(plan):
    recipe = (RECIPES / "llamafactory" / "qwen2_audio.yaml").read_text() + "quantization_bit: 4\n"
    found = plan(recipe, "--gpu", "h200", "--max", "micro_batch")
    assert (found["certain"], found["possible"]) == (None, None)
    assert "Cannot resize embedding layers" in found["rejected"]["message"]


def test_it_needs_one_gpu(plan):
    assert "--max is about one GPU" in plan(LLAMA, "--max", "micro_batch", code=2)["error"]["what"]
