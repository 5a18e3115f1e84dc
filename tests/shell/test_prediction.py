"""The dry run as a child: what it answers, what is remembered, and what happens when it fails.

The child is a program of this test's own that answers as the dry run does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from generators import make_job
from oomguard.catalogue.lookup import find_model
from oomguard.cli.main import main
from oomguard.estimate.cards import CARDS
from oomguard.estimate.memory import Fits
from oomguard.job.memory_settings import (
    Family,
    FusedPart,
    LoraKernels,
    MemorySettings,
    Objective,
)
from oomguard.job.plan import (
    Allocator,
    EmbeddingRows,
    LossKernel,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.training_job import Lengths, World
from oomguard.job.unmodelled import TrainingMethod
from oomguard.predict import trace_request
from oomguard.predict.left_out import in_version
from oomguard.predict.prediction_request import PredictionRequest
from oomguard.predict.predictor import Predictor, by_arithmetic
from oomguard.predict.replay import trace_requested
from oomguard.predict.trace_client import TraceClient, tracer_of
from oomguard.predict.trace_request import traced_with
from oomguard.units import GIB, MIB
from shapes import FACTORY, LITGPT, LLAMA_YAML, LORA, replace

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
TORCHTUNE = replace(FACTORY, family=Family.TORCHTUNE, component={})
CHILD = """#!{python}
import json, sys, time
from pathlib import Path

folder = Path({folder!r})
if sys.argv[1] == "-c":
    print((folder / "versions.json").read_text())
    sys.exit(0)
asked = json.load(sys.stdin)
with (folder / "asked.jsonl").open("a") as log:
    log.write(json.dumps(asked) + "\\n")
mode = (folder / "mode").read_text()
if mode == "hang":
    time.sleep(600)
if mode == "die":
    sys.exit("no memory for the trace")
if mode == "babble":
    print("not JSON")
    sys.exit(0)
results = []
for variant in asked["variants"]:
    tokens = variant["plan"]["micro_batch"] * variant["plan"]["sequence_length"]
    if mode == "refuse":
        error = {{"kind": "unsupported", "message": "experts cannot be traced"}}
        results.append({{"id": variant["id"], "error": error}})
        continue
    terms = {{"weights": 16 << 30, "activations": tokens << 18, "logits_and_loss": tokens << 20}}
    peak = sum(terms.values())
    estimate = {{
        "allocated_bytes": peak, "reserved_bytes": peak + (1 << 30),
        "reserved_expandable_bytes": peak + (1 << 28), "terms": terms, "method": "trace",
    }}
    results.append({{"id": variant["id"], "estimate": estimate, "fits_replay": True}})
print(json.dumps({{"v": 1, "results": results, "versions": {{}}}}))
"""


class Stand:
    """The child's folder, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "python"
        self.python.write_text(CHILD.format(python=sys.executable, folder=str(folder)))
        self.python.chmod(0o755)
        self.mode("answer")
        self.versions(torch="2.13", transformers="5.23")

    def mode(self, name: str) -> None:
        (self.folder / "mode").write_text(name)

    def versions(self, **found: str) -> None:
        facts = {"version": "3.11", "packages": found}
        (self.folder / "versions.json").write_text(json.dumps(facts))

    def tracer(self) -> TraceClient:
        found = tracer_of([str(self.python)], Family.HF.packages, cache=self.folder / "cache")
        assert found is not None
        return found

    @property
    def asked(self) -> list[dict]:
        log = self.folder / "asked.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def stand(tmp_path):
    return Stand(tmp_path)


def ask(*plans: Plan, capacity_bytes: int = 24 * GIB, **job: object) -> PredictionRequest:
    model = find_model(
        "meta-llama/Meta-Llama-3-8B", Family.HF, cwd=Path("/"), environment={"HF_HUB_OFFLINE": "1"}
    )
    return PredictionRequest(
        job=make_job(LORA, **job),
        recipe=FACTORY,
        model=model,
        plans=plans,
        capacity_bytes=capacity_bytes,
    )


def test_a_traced_plan_shows_the_traces_figures(stand):
    found = Predictor(tracer=stand.tracer())(ask(LORA)).estimates[0]
    traced = (16 << 30) + (2048 << 18) + (2048 << 20)
    assert found.method == "trace"
    assert found.allocated_bytes == traced
    assert found.reserved_bytes == traced + GIB
    assert found.terms["cuda_context"] == found.expected_bytes - found.reserved_bytes
    assert sum(found.terms.values()) == found.expected_bytes
    # what LoRA adds is told apart from the base
    assert found.terms["weights"] + found.terms["adapter"] == 16 << 30


@pytest.mark.parametrize("capacity_bytes", [24 * GIB, 18 * GIB])
def test_the_allocator_of_the_plan_decides_the_slack_and_both_share_one_trace(
    stand, capacity_bytes
):
    expandable = replace(LORA, allocator=Allocator.EXPANDABLE)
    question = ask(LORA, expandable, capacity_bytes=capacity_bytes)
    default, other = Predictor(tracer=stand.tracer())(question).estimates
    assert default.terms["allocator_slack"] == GIB
    assert other.terms["allocator_slack"] == 256 * MIB
    assert len(stand.asked) == 1


def test_an_answer_is_remembered_for_the_same_versions(stand):
    for _ in range(2):
        Predictor(tracer=stand.tracer())(ask(LORA))
    assert len(stand.asked) == 1
    stand.versions(torch="2.14", transformers="5.23")
    Predictor(tracer=stand.tracer())(ask(LORA))
    assert len(stand.asked) == 2


def test_another_capacity_is_asked_for_only_where_the_peaks_leave_it_open(stand):
    peak = (16 << 30) + (2048 << 18) + (2048 << 20)
    for capacity_bytes, asked in ((24 * GIB, 1), (80 * GIB, 1), (8 * GIB, 1), (peak + 2 * GIB, 2)):
        Predictor(tracer=stand.tracer())(ask(LORA, capacity_bytes=capacity_bytes))
        assert len(stand.asked) == asked


def test_a_broken_cache_is_asked_anew(stand):
    Predictor(tracer=stand.tracer())(ask(LORA))
    for file in (stand.folder / "cache").iterdir():
        file.write_text("{")
    found = Predictor(tracer=stand.tracer())(ask(LORA))
    assert found.estimates[0].method == "trace"
    assert len(stand.asked) == 2


@pytest.mark.parametrize(
    ("mode", "note"),
    [
        ("die", "no memory for the trace"),
        ("babble", "no JSON"),
        ("refuse", "experts cannot be traced"),
        ("hang", "longer than"),
    ],
)
def test_a_trace_that_fails_leaves_arithmetic_and_says_why(stand, mode, note):
    stand.mode(mode)
    budget_s = 1.0 if mode == "hang" else 60.0
    found = Predictor(tracer=stand.tracer(), budget_s=budget_s)(ask(LORA))
    assert found.estimates[0].method == "analytic"
    assert any(note in line for line in found.notes)


def test_plans_that_decide_are_traced_and_the_others_scaled(stand):
    plans = [replace(LORA, micro_batch=n, accumulation=16 // n) for n in (16, 8, 4, 2, 1)]
    found = Predictor(tracer=stand.tracer())(ask(*plans, capacity_bytes=30 * GIB))
    first = next(n for n, one in enumerate(found.estimates) if one.fits(30 * GIB) is Fits.YES)
    assert found.estimates[0].method == found.estimates[first].method == "trace"
    assert "analytic-scaled" in {one.method for one in found.estimates}
    peaks = [one.expected_bytes for one in found.estimates]
    assert peaks == sorted(peaks, reverse=True)


def test_trace_and_arithmetic_that_disagree_are_reported(stand):
    # the child says a MiB of logits for each token, arithmetic half as much again
    long = replace(LORA, sequence_length=65536, micro_batch=4)
    near, far = (Predictor(tracer=stand.tracer())(ask(plan)) for plan in (LORA, long))
    assert not any("differ by a factor" in line for line in near.notes)
    assert any("differ by a factor" in line for line in far.notes)
    (note,) = [line for line in far.notes if "differ by a factor" in line]
    assert "most in logits_and_loss: 256.00 GiB traced" in note


def test_an_interval_covers_trace_and_arithmetic_that_disagree(stand):
    long = replace(LORA, sequence_length=65536, micro_batch=4)
    question = ask(long, capacity_bytes=4000 * GIB)
    both = Predictor(tracer=stand.tracer())(question).estimates[0]
    arithmetic = by_arithmetic(question, long)
    assert both.method == "trace"
    assert both.expected_bytes < 0.8 * arithmetic.expected_bytes
    assert both.high_bytes == arithmetic.high_bytes
    between = (both.expected_bytes + arithmetic.high_bytes) // 2
    assert replace(both, terms={}).fits(between) is Fits.UNSURE


def test_a_sharded_plan_takes_activations_from_the_trace_and_weights_from_arithmetic(stand):
    sharded = replace(LORA, sharding=Sharding.ZERO3)
    question = ask(sharded, world=World(per_node=4))
    found = Predictor(tracer=stand.tracer())(question).estimates[0]
    assert found.terms["activations"] == 2048 << 18
    assert found.terms["weights"] == pytest.approx(2 * 8.03e9 / 4, rel=0.01)
    step = stand.asked[0]["variants"][0]
    assert "sharding" not in step["plan"]
    assert step["plan"]["optimizer"] == "sgd"


def test_the_request_says_how_the_framework_stores_numbers():
    step = trace_request.variant(ask(LORA), LORA)
    assert step is not None
    recipe = step["recipe"]
    assert isinstance(recipe, dict)
    assert (recipe["weights_dtype"], recipe["trainable_dtype"]) == ("bf16", "fp32")
    assert recipe["lora"]["targets"] == "all-linear"
    assert trace_request.variant(ask(LORA), replace(LORA, embedding_rows=EmbeddingRows.NEW)) is None


@pytest.mark.parametrize(
    ("precision", "sharding", "sent"),
    [
        (Precision.BF16_TRUE, Sharding.NONE, "bf16-mixed"),
        (Precision.FP16_TRUE, Sharding.NONE, "fp16-mixed"),
        (Precision.BF16_TRUE, Sharding.FSDP, "bf16-mixed"),
        (Precision.BF16_TRUE, Sharding.ZERO2, "bf16-true"),
        (Precision.FP32, Sharding.NONE, "fp32"),
    ],
)
def test_autocast_over_weights_in_16_bits_is_traced_as_such(precision, sharding, sent):
    plan = replace(LORA, precision=precision, sharding=sharding)
    asked = ask(plan)
    recipe = MemorySettings(lora=FACTORY.lora, autocasts=True)
    step = trace_request.variant(replace(asked, recipe=recipe), plan)
    assert step is not None
    assert step["plan"]["precision"] == sent
    wide = "fp32" if sent == "fp32" else "bf16"
    assert step["recipe"]["weights_dtype"] == wide


def test_of_lora_kernels_the_trace_of_pefts_layers_corrects_the_arithmetic(stand):
    kernels = LoraKernels(parts=frozenset(FusedPart), since=("axolotl", (0, 16)))
    lora = replace(FACTORY.lora, fused=kernels)
    plan = replace(LORA, loss_kernel=LossKernel.FUSED)  # so that the peak is in a layer
    question = replace(ask(plan), recipe=replace(FACTORY, lora=lora))
    alone, traced = Predictor(), Predictor(tracer=stand.tracer())
    assert any("LoRA kernels (from 0.16 on)" in note for note in alone(question).notes)
    few = replace(question, recipe=replace(FACTORY, lora=replace(lora, targets=("k_proj",))))
    for other in (question.without_kernels, few):  # a kernel takes all matrices of its part
        assert not any("LoRA kernels" in note for note in alone(other).notes)
    computed = alone(question).estimates[0]
    layers = alone(question.without_kernels).estimates[0]
    assert computed.terms["activations"] < 0.8 * layers.terms["activations"]
    assert computed.high_bytes == layers.high_bytes  # which run where the kernels do not
    assert computed.low_bytes < layers.low_bytes
    found = traced(question).estimates[0]
    assert found.method == "analytic-scaled"
    (asked,) = stand.asked
    assert "fused" not in asked["variants"][0]["recipe"]["lora"]
    measured = 2048 << 18
    share = computed.terms["activations"] / layers.terms["activations"]
    assert found.terms["activations"] == pytest.approx(share * measured, rel=1e-4)
    assert found.high_bytes >= traced(question.without_kernels).estimates[0].high_bytes


@pytest.mark.parametrize(
    ("versions", "runs"),
    [({}, True), ({"axolotl": "0.15.0"}, False), ({"axolotl": "0.16.1"}, True)],
)
def test_an_older_framework_runs_without_its_later_kernels(versions, runs):
    kernels = LoraKernels(parts=frozenset(FusedPart), since=("axolotl", (0, 16)))
    recipe = replace(FACTORY, lora=replace(FACTORY.lora, fused=kernels))
    assert trace_request.also_asked(recipe) == ("axolotl",)
    found = in_version(recipe, Family.HF, versions).lora
    assert found == replace(FACTORY.lora, fused=kernels if runs else None)


@pytest.mark.parametrize(("litgpt", "second_embedding"), [("0.5.2", None), ("0.5.13", True)])
def test_what_a_quantized_litgpt_run_trains_depends_on_its_version(litgpt, second_embedding):
    plan = replace(LORA, quantization=Quantization.NF4)
    question = replace(ask(plan), recipe=LITGPT)
    step = trace_request.variant(question, plan, {"litgpt": litgpt})
    assert step is not None
    assert step["plan"]["optimizer"] == "paged_adamw"
    assert step["recipe"].get("stable_embedding") is second_embedding


def test_batches_are_as_long_as_the_longest_sample_that_the_tokenizer_counted():
    lengths = Lengths(samples=2, sorted_tokens=(100, 700), counted_by="the tokenizer")
    question = ask(LORA, lengths=lengths)
    assert question.batched(LORA).sequence_length == 700
    assert "700 tokens" in Predictor()(question).notes[-1]
    mixed = replace(lengths, sorted_tokens=(90, 100, 700))
    for accumulation, last_of_the_second_step in ((1, [[100], [700]]), (8, [[700], [100]])):
        plan = replace(LORA, accumulation=accumulation)
        step = trace_request.variant(ask(plan, lengths=mixed), plan)
        assert step is not None
        assert step["recipe"]["lengths"] == last_of_the_second_step
    guessed = replace(lengths, counted_by="4 characters a token")
    assert ask(LORA, lengths=guessed).batched(LORA) == LORA
    packed = replace(lengths, filled=True)
    assert ask(LORA, lengths=packed).batched(LORA) == LORA


@pytest.mark.parametrize("quantization", [None, Quantization.NONE, Quantization.NF4])
def test_only_a_quantized_run_takes_the_paged_optimizer(quantization):
    plan = replace(LORA, quantization=quantization, tuning=Tuning.FULL, optimizer="AdamW")
    step = trace_request.variant(replace(ask(plan), recipe=LITGPT), plan)
    paged = quantization is Quantization.NF4
    assert step["plan"]["optimizer"] == ("paged_adamw" if paged else "AdamW")


def test_a_python_without_torch_traces_nothing(stand):
    stand.versions(transformers="5.23")
    assert tracer_of([str(stand.python), "/nonexistent/python"], Family.HF.packages) is None


@pytest.mark.parametrize(
    ("settings", "family", "line"),
    [
        (FACTORY, Family.HF, "pip install 'oomguard[trace]'"),
        (LITGPT, Family.LITGPT, "pip install 'oomguard[trace-litgpt]'"),
        (TORCHTUNE, Family.HF, "pip install 'oomguard[trace-torchtune]'"),
    ],
)
def test_without_a_tracer_one_note_says_what_to_install(settings, family, line):
    name = "meta-llama/Meta-Llama-3-8B"
    model = find_model(name, family, cwd=Path("/"), environment={"HF_HUB_OFFLINE": "1"})
    question = replace(ask(LORA), recipe=settings, model=model)
    (note,) = [note for note in Predictor()(question).notes if "analytic" in note]
    assert note.endswith(line)


@pytest.mark.parametrize("family", Family)
def test_an_extra_brings_the_packages_that_build_a_familys_models(family):
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    names = {name.partition(">")[0] for name in extras[family.extra]}
    assert {*family.packages} - {"torch"} <= names


def test_a_python_without_the_package_of_the_methods_loss_traces_nothing(stand):
    objective = Objective(method=TrainingMethod.DPO, since=("trl", (1, 16)))
    needed = traced_with(replace(FACTORY, objective=objective), Family.HF)
    assert tracer_of([str(stand.python)], needed) is None
    stand.versions(torch="2.13", transformers="5.23", trl="1.16.0")
    found = tracer_of([str(stand.python)], needed)
    assert found is not None
    assert found.versions["trl"] == "1.16.0"


VL = Plan(micro_batch=2, accumulation=1, sequence_length=2048, image_pixels=448 * 448)


@pytest.fixture
def pictured(tmp_path):
    """Ask about a vision model whose largest sample has these images."""
    model = find_model(
        "Qwen/Qwen2.5-VL-7B-Instruct", Family.HF, cwd=tmp_path, environment={"HF_HUB_OFFLINE": "1"}
    )

    def of(*images, plan=VL):
        known = Lengths(samples=9, sorted_tokens=(9, 900), counted_by="a guess", images=images)
        question = PredictionRequest(
            job=make_job(plan, lengths=known), recipe=replace(FACTORY, images=1), model=model,
            plans=(plan,), capacity_bytes=GIB,
        )  # fmt: skip
        return question, trace_request.variant(question, plan)

    return of


def test_images_are_traced_at_the_sizes_that_the_data_have(pictured):
    question, asked = pictured((112, 224), (224, 112))
    assert asked["recipe"]["media"] == {"images": [[112, 224], [224, 112]]}
    assert asked["plan"]["image_pixels"] == 112 * 224
    assert question.problem(VL).recipe.images == 2


def test_images_beyond_the_limit_are_as_large_as_it_allows(pictured):
    _, asked = pictured((1000, 4000))
    ((high, wide),) = asked["recipe"]["media"]["images"]
    assert wide == pytest.approx(4 * high, rel=0.01)
    assert 0.98 * 448 * 448 < high * wide <= 448 * 448


def test_images_leave_room_for_the_text(pictured):
    _, asked = pictured(*[(448, 448)] * 20)
    images = asked["recipe"]["media"]["images"]
    assert len(images) == 20
    assert sum(high * wide for high, wide in images) <= (2048 - trace_request.SPARE_TOKENS) * 28**2


def test_without_images_at_hand_the_largest_allowed_one_is_taken(pictured):
    _, asked = pictured()
    assert asked["recipe"]["media"] == {"images": [[448, 448]]}
    assert "lengths" not in asked["recipe"]


# --- Many plans and capacities after one trace ---


def test_one_trace_answers_for_every_capacity_and_scales_to_other_plans(stand):
    small, large = ask(LORA, capacity_bytes=8 * GIB), ask(LORA, capacity_bytes=80 * GIB)
    replay = trace_requested(Predictor(tracer=stand.tracer()), [large, small])
    assert len(stand.asked) == 1
    traced = Predictor(tracer=stand.tracer())(large).estimates[0]
    assert replay(large).estimates[0] == traced
    assert replay(small).estimates[0].fits(8 * GIB) is Fits.NO
    longer = replace(LORA, sequence_length=4096)
    (scaled,) = replay(replace(large, plans=(longer,))).estimates
    assert scaled.method == "analytic-scaled"
    assert scaled.expected_bytes > traced.expected_bytes
    assert len(stand.asked) == 1


def test_a_replay_that_was_not_tried_in_this_capacity_does_not_make_it_fit(stand):
    """Allocated 18.5 GiB, reserved 19.5: between them only a replay shows whether it fits."""
    replay = trace_requested(Predictor(tracer=stand.tracer()), [ask(LORA, capacity_bytes=80 * GIB)])
    between = ask(LORA, capacity_bytes=int(20.3 * GIB))
    assert replay(between).estimates[0].fits(between.capacity_bytes) is Fits.UNSURE


def test_a_trace_does_not_hold_for_a_gpu_whose_step_is_another(stand):
    """A Hopper card's cuBLAS takes more: its trace is one of its own."""
    usual, hopper = ask(LORA), ask(LORA, hopper=True)
    replay = trace_requested(Predictor(tracer=stand.tracer()), [usual])
    assert replay(usual).estimates[0].method == "trace"
    assert replay(hopper).estimates[0].method == "analytic"
    both = trace_requested(Predictor(tracer=stand.tracer()), [usual, hopper])
    assert both(hopper).estimates[0].method == "trace"


def test_why_nothing_was_traced_is_a_note(stand):
    stand.mode("refuse")
    found = trace_requested(Predictor(tracer=stand.tracer()), [ask(LORA)])(ask(LORA))
    assert found.estimates[0].method == "analytic"
    assert "not traced: experts cannot be traced" in found.notes
    alone = trace_requested(Predictor(), [ask(LORA)])(ask(LORA))
    assert any("estimates are analytic" in note for note in alone.notes)


@pytest.fixture
def traced_plan(stand, tmp_path, monkeypatch, capsys):
    """`oomguard plan` in a Python that traces, for Llama-3-8B; the same file in every call."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own-cache"))
    monkeypatch.setattr("oomguard.cli.plan_command.gpus_here", tuple)
    file = tmp_path / "train.yaml"
    file.write_text(LLAMA_YAML)

    def run(*words: str) -> dict:
        assert main(["plan", str(file), "--python", str(stand.python), "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_a_table_of_gpus_traces_each_kind_of_gpu_once_and_scales_the_rest(stand, traced_plan):
    document = traced_plan("--gpu", "all")
    kinds = {(card.bfloat16, card.hopper) for card in CARDS}
    assert len(stand.asked) <= len(kinds) == 3
    fitting = [row for row in document["cards"] if row["answer"] == "fits"]
    assert {row["method"] for row in fitting} == {"trace"}
    changed = [row for row in document["cards"] if row["answer"] == "with_changes"]
    assert "analytic-scaled" in {row["method"] for row in changed}
    assert not [note for note in document["notes"] if "estimates are analytic" in note]
    before = len(stand.asked)
    assert traced_plan("--gpu", "all")["cards"] == document["cards"]
    assert len(stand.asked) == before


def test_the_table_and_a_plan_agree_on_the_traced_config(traced_plan):
    rows = {(row["card"], row["gpus"]): row for row in traced_plan("--gpu", "all")["cards"]}
    for card in ("RTX 3090", "A100 40GB", "A100 80GB", "H100", "H200"):
        alone = traced_plan("--gpu", card)["asked"]
        assert rows[card, 1]["asked_fits"] == alone["fits"]


def test_the_largest_value_is_found_with_the_one_trace(stand, traced_plan):
    document = traced_plan("--gpu", "a100-80", "--max", "sequence_length")
    assert len(stand.asked) == 1
    assert document["requested"]["method"] == "trace"
    assert document["certain"]["method"] == document["possible"]["method"] == "analytic-scaled"
    assert document["certain"]["value"] >= document["requested"]["value"] == 2048
    assert any("scaled from it" in note for note in document["notes"])
