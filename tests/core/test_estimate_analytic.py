"""The analytic tier: the hand calculation term by term, and what must hold for every plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.adapters.hf import heads
from oomguard.adapters.hf.hf_memory import TRAINER_CODE
from oomguard.estimate.analytic import SPREAD, EstimateInput, analytic, static
from oomguard.estimate.combine import clip_to_capacity
from oomguard.estimate.host import host_peak
from oomguard.estimate.memory import Fits, MemoryEstimate, Term, estimate
from oomguard.estimate.optimizer_memory import step_temporaries
from oomguard.job.memory_settings import (
    ALL_LINEAR,
    Attention,
    Format,
    Loop,
    Lora,
    MemorySettings,
    Objective,
    Tiles,
)
from oomguard.job.plan import (
    Allocator,
    LossKernel,
    Offload,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.unmodelled import TrainingMethod
from oomguard.units import GIB, MIB
from shapes import FACTORY, LITGPT, LLAMA3, LORA, model, problem

# Llama-3-8B in bf16 without autocast, LoRA of rank 8 in fp32 on all linear layers, 1 x 2048.
HAND = {"precision": Precision.FP32}


def peak(given: EstimateInput) -> MemoryEstimate:
    return estimate(analytic(given), method="analytic", spread=SPREAD, host=host_peak(given))


def test_the_hand_calculation_term_by_term():
    terms = analytic(problem(**HAND))
    shown = {term: size / GIB for term, size in terms.items()}
    assert shown[Term.WEIGHTS] == pytest.approx(14.958, abs=0.01)
    assert shown[Term.ADAPTER] == pytest.approx(0.078, abs=0.001)
    assert shown[Term.OPTIMIZER] == pytest.approx(0.156, abs=0.001)
    assert shown[Term.ACTIVATIONS] == pytest.approx(0.516, abs=0.02)
    assert shown[Term.LOGITS_AND_LOSS] == pytest.approx(2.936, abs=0.001)
    allocated = peak(problem(**HAND)).allocated_bytes / GIB
    assert allocated == pytest.approx(18.66, rel=0.01)


def test_autocast_keeps_a_copy_of_a_frozen_head_where_logits_are_whole():
    def copied(**changes) -> int:
        given = problem(precision=Precision.BF16_MIXED)
        recipe = replace(given.recipe, **{"base": Format.FP32, **changes.pop("recipe", {})})
        return replace(given, recipe=recipe, plan=replace(given.plan, **changes)).step.cast_head

    assert copied() == 2 * LLAMA3.vocab * LLAMA3.hidden
    saved = Lora(rank=8, alpha=16, saved=("lm_head",))
    for changes in (
        {"recipe": {"lora": saved}},
        {"recipe": {"base": Format.BF16}},
        {
            "recipe": {
                "objective": Objective(method=TrainingMethod.DPO, tiles=Tiles(tokens=9, words=9))
            }
        },
        {"recipe": {"objective": heads.CLASSIFICATION}},
        {"recipe": {"objective": heads.EMBEDDING}},
        {"recipe": {"loss_chunk": 128}},
        {"loss_kernel": LossKernel.FUSED},
        {"precision": Precision.FP32},
        {"tuning": Tuning.FULL},
    ):
        assert copied(**changes) == 0, changes


def test_what_one_layer_keeps_without_checkpointing():
    # 7 fp32 LoRA inputs 304, RMSNorm 64, SwiGLU 168, q/k/v/o 64 MiB; a mask that is not kept: 8
    kept = problem(**HAND, checkpointing=False).step.layer / MIB
    assert kept == pytest.approx(600, rel=0.01)


@pytest.mark.parametrize(
    ("trained", "checkpointed", "whole"), [(2, 2, 0), (-2, 2, 30), (40, 32, 0)]
)
def test_what_partial_tuning_keeps_depends_on_which_layers_it_trains(trained, checkpointed, whole):
    # Gradients go through all layers after the first trained one; LLaMA-Factory checkpoints those
    # of them that are trained. A frozen one keeps no inputs of its matrices.
    recipe = replace(FACTORY, trained_layers=trained, lora=None)
    step = problem(recipe=recipe, **HAND, tuning=Tuning.PARTIAL, lora_rank=None).step
    inputs = 2 * step.tokens * (2 * 4096 + 14336 + 4096)
    one = 2 * step.tokens * 4096
    assert step.kept == checkpointed * one + whole * (step.layer - inputs)
    kept = replace(step, plan=replace(step.plan, checkpointing=False)).kept
    assert kept == checkpointed * step.layer + whole * (step.layer - inputs)


def test_an_unquantized_llamafactory_adapter_keeps_what_its_frozen_tower_computes():
    given = {"model": model("Qwen/Qwen2.5-VL-7B-Instruct"), "image_pixels": 768 * 768}
    kept = problem(**given).step.tower
    # 3009 patches, 32 layers of 10 x 1280 + 3 x 3420 numbers of 2 bytes; traced: 4.1 GiB
    assert kept / GIB == pytest.approx(4.1, rel=0.05)
    other = replace(FACTORY, code=TRAINER_CODE)
    assert problem(recipe=other, **given).step.tower == kept / 16
    assert problem(quantization=Quantization.NF4, **given).step.tower == kept / 16


plans = st.builds(
    Plan,
    micro_batch=st.sampled_from([1, 2, 4, 8]),
    accumulation=st.sampled_from([2, 4, 8]),
    sequence_length=st.sampled_from([512, 1024, 4096, 16384]),
    checkpointing=st.booleans(),
    precision=st.sampled_from([Precision.BF16_MIXED, Precision.BF16_TRUE, Precision.FP32]),
    quantization=st.sampled_from([Quantization.NONE, Quantization.NF4, Quantization.NF4_DOUBLE]),
    tuning=st.just(Tuning.LORA),
    lora_rank=st.sampled_from([8, 64]),
    sharding=st.sampled_from([Sharding.NONE, Sharding.ZERO2, Sharding.ZERO3, Sharding.FSDP]),
    optimizer=st.sampled_from(["adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "sgd"]),
    allocator=st.sampled_from(Allocator),
)
recipes = st.sampled_from([FACTORY, LITGPT, replace(FACTORY, attention=Attention.FLASH)])


@given(plan=plans, recipe=recipes, ranks=st.sampled_from([1, 2, 8]))
def test_terms_add_up_and_bounds_enclose(plan, recipe, ranks):
    found = peak(problem(plan, recipe, ranks=ranks))
    assert sum(found.terms.values()) == found.expected_bytes
    assert found.low_bytes <= found.expected_bytes <= found.high_bytes
    assert found.allocated_bytes <= found.reserved_bytes < found.expected_bytes
    assert all(size > 0 for size in found.terms.values())


@given(plan=plans, recipe=recipes)
def test_less_work_never_takes_more(plan, recipe):
    whole = peak(problem(plan, recipe)).expected_bytes
    halved = replace(plan, micro_batch=max(1, plan.micro_batch // 2))
    shorter = replace(plan, sequence_length=(plan.sequence_length or 0) // 2)
    fused = replace(plan, loss_kernel=LossKernel.FUSED)
    assert all(
        peak(problem(one, recipe)).expected_bytes <= whole for one in (halved, shorter, fused)
    )


@given(plan=plans, recipe=recipes, ranks=st.sampled_from([2, 4, 8]))
def test_zero3_holds_less_of_the_weights_the_more_ranks_there_are(plan, recipe, ranks):
    sharded = replace(plan, sharding=Sharding.ZERO3)
    few, many = (analytic(problem(sharded, recipe, ranks=n)) for n in (ranks, 2 * ranks))
    assert many[Term.WEIGHTS] < few[Term.WEIGHTS]


def test_offload_moves_the_optimizer_to_the_host():
    full = problem(
        LORA,
        MemorySettings(code=FACTORY.code, base=Format.BF16),
        tuning=Tuning.FULL,
        ranks=4,
        sharding=Sharding.ZERO3,
        quantization=Quantization.NONE,
    )
    offloaded = replace(full, plan=replace(full.plan, offload=frozenset({Offload.OPTIMIZER})))
    here, there = analytic(full), analytic(offloaded)
    assert there[Term.OPTIMIZER] == 0 < here[Term.OPTIMIZER]
    # fp32 copy, two moments, a gradient in fp32 and one in 16 bits, for 8.03e9 numbers
    assert host_peak(offloaded)["offloaded"] == pytest.approx(18 * 8.03e9, rel=0.01)
    assert "offloaded" not in host_peak(full)


def test_full_tuning_takes_16_bytes_a_number_and_zero2_shares_them_out():
    recipe = MemorySettings(code=FACTORY.code, base=Format.BF16)
    alone = analytic(problem(LORA, recipe, tuning=Tuning.FULL, quantization=Quantization.NONE))
    fixed = sum(alone.get(t, 0) for t in (Term.WEIGHTS, Term.GRADIENTS, Term.OPTIMIZER))
    assert fixed >= 16 * LLAMA3.parameters
    zero2 = problem(LORA, recipe, tuning=Tuning.FULL, sharding=Sharding.ZERO2, ranks=8)
    shared = analytic(zero2)
    assert shared[Term.WEIGHTS] == pytest.approx(2 * LLAMA3.parameters, rel=0.01)
    assert static(zero2)[Term.OPTIMIZER] == pytest.approx(12 * LLAMA3.parameters / 8, rel=0.01)


def test_new_tokens_are_a_term_of_their_own():
    audio = model("Qwen/Qwen2-Audio-7B-Instruct")
    saved = Lora(rank=8, alpha=16, targets=(ALL_LINEAR,), saved=("embed_tokens", "lm_head"))
    recipe = replace(FACTORY, lora=saved, new_tokens=3)
    terms = analytic(problem(LORA, recipe, audio, accumulation=8))
    # a copy, a gradient and two moments in fp32 for each number of both matrices
    expected = 16 * 2 * (156032 + 3) * 4096
    assert terms[Term.TRAINED_EMBEDDINGS] == pytest.approx(expected, rel=0.001)


def test_eager_attention_grows_with_the_square_of_the_length():
    eager = replace(FACTORY, attention=Attention.EAGER)
    short, long = (
        problem(LORA, eager, sequence_length=n, checkpointing=False).step.layer
        for n in (2048, 4096)
    )
    assert long > 2.5 * short


def test_a_capacity_between_low_and_high_is_unsure():
    found = peak(problem())
    assert found.fits(found.high_bytes) is Fits.YES
    assert found.fits(found.expected_bytes) is Fits.UNSURE
    assert found.fits(found.low_bytes - 1) is Fits.NO


def test_a_replay_that_does_within_the_capacity_ends_the_estimate_there():
    found = peak(problem())
    tight = found.expected_bytes - found.terms["allocator_slack"] // 2
    ended = clip_to_capacity(found, tight)
    assert ended.fits(tight) is Fits.YES
    assert ended.expected_bytes == ended.high_bytes == tight
    assert sum(ended.terms.values()) == ended.expected_bytes
    assert ended.allocated_bytes == found.allocated_bytes
    assert clip_to_capacity(found, found.high_bytes) == found
    assert clip_to_capacity(found, found.allocated_bytes // 2) == found


def test_eight_bit_states_of_an_embedding_are_in_fp32_under_the_trainer_alone():
    given = {"tuning": Tuning.FULL, "optimizer": "adamw_8bit", "precision": Precision.BF16_TRUE}
    recipe = replace(FACTORY, lora=None, trained_fp32=False)
    states = static(problem(**given, recipe=recipe))[Term.OPTIMIZER]
    numbers, eight, embedding = 8.03e9, 2 * (1 + 4 / 256), 128256 * 4096
    assert states == pytest.approx(numbers * eight + embedding * (8 - eight), rel=1e-3)
    loop = replace(recipe.code, loop=Loop.SCRIPT)
    script = static(problem(**given, recipe=replace(recipe, code=loop)))[Term.OPTIMIZER]
    assert script == pytest.approx(numbers * eight, rel=1e-3)
    sharded = problem(**given, recipe=recipe, sharding=Sharding.FSDP, ranks=2)
    assert static(sharded)[Term.OPTIMIZER] == pytest.approx(numbers * eight / 2, rel=1e-3)
    paged = problem(**given | {"optimizer": "paged_adamw_8bit"}, recipe=recipe)
    assert static(paged)[Term.OPTIMIZER] == 0


def test_adafactor_updates_through_fp32_copies_of_the_largest_tensor():
    recipe = replace(FACTORY, lora=None, trained_fp32=False)
    given = {"tuning": Tuning.FULL, "optimizer": "adafactor", "precision": Precision.BF16_TRUE}
    update = step_temporaries(problem(**given, recipe=recipe))
    assert update == 4 * 4 * 128256 * 4096
    assert step_temporaries(problem(optimizer="adafactor")) == 0  # no matrix of its own is trained
