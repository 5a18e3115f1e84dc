"""`oomguard plan` without a GPU: on which ones the job fits, and the smallest of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oomguard.cli.main import main
from oomguard.estimate.cards import CARDS
from oomguard.machine.gpus import Gpu
from oomguard.units import GIB
from shapes import LLAMA_YAML

RECIPES = Path(__file__).parents[2] / "recipes"


pytestmark = pytest.mark.usefixtures("arithmetic")


def rows(document: dict) -> dict[tuple[str, int], dict]:
    return {(row["card"], row["gpus"]): row for row in document["cards"]}


@pytest.mark.parametrize(
    ("recipe", "gpus"),
    [
        ("llamafactory/qwen2_5_vl.yaml", 8),
        ("hf_trainer/trl.yaml", 2),
        ("litgpt/train.yaml", 1),
        ("torchtune/train.yaml", 1),
    ],
)
@pytest.mark.parametrize("card", ["T4", "RTX 3090", "A100 80GB", "H100", "B200"])
def test_a_row_is_what_a_plan_for_that_gpu_answers(plan, recipe, gpus, card):
    row = rows(plan(RECIPES / recipe))[card, gpus]
    words = ["--gpu", card, "--gpus", gpus, "--allow", "same_math"]
    alone = plan(RECIPES / recipe, *words)
    assert (row["asked_fits"], row["capacity_bytes"]) == (
        alone["asked"]["fits"], alone["capacity_bytes"],
    )  # fmt: skip
    fitting = alone["asked"] if alone["asked"]["fits"] == "yes" else None
    if alone["chosen"] is not None:
        fitting = alone["rungs"][alone["chosen"]]
    assert (row["answer"] in ("fits", "with_changes")) == (fitting is not None)
    if fitting is not None:
        assert (row["plan"], row["estimate"]) == (fitting["plan"], fitting["estimate"])
        assert (row["answer"] == "fits") == (alone["chosen"] is None)
    may = "unsure" in {alone["asked"]["fits"], *(rung["fits"] for rung in alone["rungs"])}
    if fitting is None:
        assert row["answer"] == ("unsure" if may else "no")


def test_every_gpu_that_is_known_is_answered_for_once_and_the_smallest_is_named(plan, train):
    document = plan(train)
    found = rows(document)
    assert set(found) == {(card.name, gpus) for card in CARDS for gpus in (1, 2, 4, 8)}
    assert len(document["cards"]) == len(found)
    fitting = [r for r in document["cards"] if r["answer"] in ("fits", "with_changes")]
    least = min(row["gpus"] * row["capacity_bytes"] for row in fitting)
    smallest = document["smallest"]
    assert smallest["gpus"] * smallest["capacity_bytes"] == least
    assert {step for row in fitting for step in [row["fidelity"]]} == {None, "same_math"}
    as_requested = document["smallest_as_requested"]
    assert as_requested["answer"] == "fits"
    assert as_requested["estimate"]["high_bytes"] <= as_requested["capacity_bytes"]
    assert not any(
        row["answer"] == "fits"
        and row["gpus"] * row["capacity_bytes"]
        < as_requested["gpus"] * as_requested["capacity_bytes"]
        for row in document["cards"]
    )


def test_more_gpus_without_shards_do_not_lower_the_peak_of_one(plan, train):
    document = plan(train)
    one, eight = (rows(document)["RTX 3090", gpus] for gpus in (1, 8))
    assert (one["asked_fits"], eight["asked_fits"]) == ("no", "no")
    alone = plan(train, "--gpu", "3090")["asked"]["estimate"]["allocated_bytes"]
    eighth = plan(train, "--gpu", "3090", "--gpus", 8)["asked"]["estimate"]["allocated_bytes"]
    assert eighth >= alone
    assert document["global_batches"] == {"1": 16, "2": 32, "4": 64, "8": 128}
    assert any("unless a strategy shards it" in note for note in document["notes"])


def test_a_launcher_with_a_number_of_its_own_leaves_one_number(plan, tmp_path):
    words = ["litgpt", "finetune_lora", "checkpoints/meta-llama/Meta-Llama-3-8B", "--devices", "2"]
    document = plan("--json", "--", *words)
    assert {row["gpus"] for row in document["cards"]} == {2}


def test_what_is_not_modelled_is_never_said_to_fit(plan, capsys, train):
    train.write_text(LLAMA_YAML + "mixture_of_depths: convert\n")
    document = plan(train)
    assert {row["answer"] for row in document["cards"]} <= {"unsure", "no"}
    assert (document["smallest"], document["smallest_as_requested"]) == (None, None)
    unsure = rows(document)["B200", 1]
    assert (unsure["answer"], unsure["asked_fits"]) == ("unsure", "unsure")
    assert "mixture_of_depths" in unsure["because"]
    assert main(["plan", str(train)]) == 0
    text = capsys.readouterr().out
    assert "It is not certain to fit on up to 8 of these GPUs." in text
    assert "On 1, 2, 4, 8 GPUs:" in text
    assert "fits as requested" not in text
    assert "The estimate leaves out mixture_of_depths" in text


def test_what_the_framework_refuses_does_not_fit_as_requested(plan, tmp_path):
    file = tmp_path / "train.yaml"
    recipe = (RECIPES / "llamafactory" / "qwen2_audio.yaml").read_text()
    file.write_text(recipe + "quantization_bit: 4\n")
    document = plan(file)
    assert "fits" not in {row["answer"] for row in document["cards"]}
    assert document["smallest_as_requested"] is None
    assert "Cannot resize embedding layers" in document["rejected"]["message"]


def test_host_memory_bounds_what_is_offloaded(plan, train):
    free, tight = plan(train), plan(train, "--host-memory", "20GiB")
    changed = rows(free)["RTX 3070", 1]
    assert "offload_parameters" in changed["strategies"]
    assert changed["estimate"]["host_bytes"] > 20 * GIB
    assert rows(tight)["RTX 3070", 1]["answer"] == "no"


def test_changes_beyond_the_same_math_are_tried_where_they_are_allowed(plan, train):
    row = rows(plan(train, "--allow", "new_recipe", "--gpus", 1))["RTX 3070", 1]
    alone = plan(train, "--gpu", "RTX 3070")
    fit = alone["cheapest"] or alone["rungs"][alone["chosen"]]
    assert (row["answer"], row["plan"]) == ("with_changes", fit["plan"])
    strict = rows(plan(train, "--allow", "same_math"))["RTX 3070", 1]
    assert strict == rows(plan(train))["RTX 3070", 1]


def test_the_text_names_the_smallest_first_and_groups_gpus_with_the_same_answer(capsys, train):
    assert main(["plan", str(train)]) == 0
    text = capsys.readouterr().out
    in_order = [
        "global batch 16 on 1 GPU, 32 on 2 GPUs",
        "The smallest that fits: 1 x ",
        "The smallest that fits as requested: 1 x H100 (79.10 GiB usable).",
        "On 1 GPU:",
        "fits with ",
        "fits as requested (analytic)",
        "On 8 GPUs:",
        "note: changes up to same math",
    ]
    assert [text.index(part) for part in in_order] == sorted(text.index(part) for part in in_order)


def test_verbose_gives_each_gpu_a_line_with_its_peak(capsys, train):
    assert main(["plan", str(train), "--gpus", "1", "--verbose"]) == 0
    text = capsys.readouterr().out
    for card in CARDS:
        assert text.count(f"  {card.name} (") == 1
    assert "On 2 GPUs" not in text


HERE = Gpu(
    index=0, uuid="GPU-1", name="NVIDIA GeForce RTX 3090", total_bytes=24 * GIB, used_bytes=0
)


def test_where_there_are_gpus_those_are_planned_for(plan, capsys, monkeypatch, train):
    monkeypatch.setattr("oomguard.cli.plan_command.gpus_here", lambda: (HERE, HERE))
    document = plan(train)
    assert document["capacity_bytes"] == 24 * GIB
    assert plan(train, "--gpus", 2, "--gpu-memory", "24GiB")["asked"] == document["asked"]
    assert main(["plan", str(train)]) == 0
    said = capsys.readouterr()
    assert "on 2 x RTX 3090" in said.out
    assert "planned for the 2 GPUs here; --gpu all compares" in said.err
    assert len(rows(plan(train, "--gpu", "all"))) == 4 * len(CARDS)


def test_a_limit_in_the_block_is_what_is_planned_for(plan, train):
    train.write_text(LLAMA_YAML + "oomguard:\n  gpu_memory: 24GiB\n")
    document = plan(train)
    assert 24 * GIB < document["capacity_bytes"] < 25 * GIB  # and the CUDA context, as at a launch


def test_terms_are_explained_for_one_gpu(plan, train):
    assert "--explain-terms" in plan(train, "--explain-terms", code=2)["error"]["what"]


def test_a_job_on_the_cpu_has_no_table(plan, train):
    train.write_text(LLAMA_YAML + "use_cpu: true\n")
    assert "CPU" in plan(train, code=2)["error"]["what"]


# --- How many are needed ---

SHARDED = LLAMA_YAML.replace("finetuning_type: lora", "finetuning_type: full").replace(
    "per_device_train_batch_size: 8", "per_device_train_batch_size: 1\ndeepspeed: ds.json"
)


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zero = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": "auto"}
    (tmp_path / "ds.json").write_text(json.dumps(zero))
    file = tmp_path / "train.yaml"
    file.write_text(SHARDED)
    return file


def test_the_fewest_gpus_are_those_of_the_first_plan_that_fits(plan, sharded):
    document = plan(sharded, "--gpu", "a100-80", "--gpus", "auto")
    assert [row["gpus"] for row in document["cards"]] == list(range(1, 9))
    assert {row["card"] for row in document["cards"]} == {"A100 80GB"}
    verdicts = {
        gpus: plan(sharded, "--gpu", "a100-80", "--gpus", gpus)["asked"]["fits"]
        for gpus in range(1, 9)
    }
    assert {row["gpus"]: row["asked_fits"] for row in document["cards"]} == verdicts
    fewest = min(gpus for gpus, fits in verdicts.items() if fits == "yes")
    assert fewest > 1
    assert document["smallest_as_requested"]["gpus"] == fewest


def test_the_text_of_how_many_joins_numbers_with_the_same_answer(capsys, sharded):
    assert main(["plan", str(sharded), "--gpu-memory", "80GiB", "--gpus", "auto"]) == 0
    text = capsys.readouterr().out
    assert "The smallest that fits as requested: " in text
    assert " x 80.00 GiB GPU (80.00 GiB usable)." in text
    assert " to 8 GPUs:" in text
    assert text.count("fits as requested (analytic)") == 1
    assert "unless a strategy shards it" not in text


def test_a_job_with_a_number_of_its_own_leaves_nothing_to_choose(capsys):
    words = ["litgpt", "finetune_lora", "checkpoints/meta-llama/Meta-Llama-3-8B", "--devices", "2"]
    assert main(["plan", "--gpu", "h100", "--gpus", "auto", "--json", "--", *words]) == 0
    said = capsys.readouterr()
    assert {row["gpus"] for row in json.loads(said.out)["cards"]} == {2}
    assert "--gpus auto has no effect: the job starts on 2" in said.err


@pytest.mark.parametrize("more", [["--max", "micro_batch"], ["--ci"], ["--explain-terms"]])
def test_how_many_is_a_question_of_its_own(plan, train, more):
    error = plan(train, "--gpu", "h100", "--gpus", "auto", *more, code=2)["error"]
    assert "--gpus auto" in error["what"]


# --- Prices ---


@pytest.mark.parametrize(
    "file",
    [
        ("prices.yaml", "l4: 0.7\nRTX 3090: 0.4\na100-80: 1.5\n"),
        ("prices.json", '{"L4": 0.7, "3090": "0.4", "A100 80GB": 1.5}'),
        ("prices.csv", "gpu,price\nL4,0.7\n\n3090, 0.4\nA100-80,1.5\n"),
    ],
)
def test_the_cheapest_that_fits_is_named_by_the_users_own_prices(
    plan, capsys, train, tmp_path, file
):
    name, text = file
    (tmp_path / name).write_text(text)
    words = [train, "--gpu", "all", "--prices", tmp_path / name]
    document = plan(*words)
    priced = [row for row in document["cards"] if row["price"] is not None]
    assert {row["card"] for row in priced} == {"L4", "RTX 3090", "A100 80GB"}
    assert rows(document)["L4", 4]["price"] == pytest.approx(2.8)
    fitting = [row for row in priced if row["answer"] in ("fits", "with_changes")]
    assert document["cheapest"]["price"] == min(row["price"] for row in fitting) == 0.4
    assert main(["plan", *map(str, words)]) == 0
    said = capsys.readouterr().out
    assert "The cheapest that fits: 1 x RTX 3090 for 0.4 an hour (23.69 GiB usable), with " in said
    assert "on which it fits: no price was stated" in said


def test_without_prices_none_is_named(plan, capsys, train):
    assert plan(train)["cheapest"] is None
    assert main(["plan", str(train)]) == 0
    assert "cheapest" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("L4: 1\nL5: 2\n", ("no GPU called 'L5'", "p.yaml:2")),
        ("L4: 1\nA10: much\n", ("the price of A10", "p.yaml:2")),
        ("L4: -1\n", ("at least 0", "p.yaml:1")),
        ("RTX 3090: 1\n'3090': 2\n", ("a second price for RTX 3090", "p.yaml:2")),
        ("L4,1\nA10\n", ("not a name and a price", "p.csv:2")),
        ("gpu,price\n", ("has no prices", "p.csv")),
    ],
)
def test_a_price_that_is_not_understood_is_an_error_with_its_line(
    plan, train, tmp_path, text, said
):
    what, where = said
    file = tmp_path / where.partition(":")[0]
    file.write_text(text)
    error = plan(train, "--gpu", "all", "--prices", file, code=2)["error"]
    assert what in error["what"]
    assert where in error["where"]


def test_prices_are_for_several_gpus(plan, train, tmp_path):
    (tmp_path / "p.yaml").write_text("L4: 1\n")
    error = plan(train, "--gpu", "L4", "--prices", tmp_path / "p.yaml", code=2)["error"]
    assert "several GPUs" in error["what"]
