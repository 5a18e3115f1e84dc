"""The host's peak while weights are loaded."""

from __future__ import annotations

from dataclasses import replace

from oomguard.adapters.hf.hf_memory import TRAINER_CODE
from oomguard.estimate.host import host_peak
from oomguard.job.memory_settings import ALL_LINEAR, Format, LoftqStart, Lora, MemorySettings
from oomguard.job.plan import Loftq, Plan, Precision, Quantization, Sharding, Tuning
from shapes import LORA, model, problem

PHI = model("microsoft/Phi-3-mini-4k-instruct")
GB = 10**9


def loftq(bits: int, *, replaces: bool) -> int:
    recipe = MemorySettings(
        code=TRAINER_CODE,
        base=Format.FP32 if not replaces else Format.BF16,
        lora=Lora(rank=16, alpha=16, targets=(ALL_LINEAR,)),
        loftq=LoftqStart(bits=bits),
    )
    plan = Plan(
        micro_batch=1,
        accumulation=1,
        sequence_length=512,
        tuning=Tuning.LORA,
        precision=Precision.FP32,
        loftq=Loftq.STAGED if replaces else Loftq.AT_ONCE,
        quantization=Quantization.NF4 if replaces else Quantization.NONE,
    )
    return sum(host_peak(problem(plan, recipe, PHI)).values())


def test_loftq_takes_more_than_the_machine_had_and_replacing_weights_a_few_gigabytes():
    assert loftq(8, replaces=False) > 83.5 * GB
    assert loftq(8, replaces=True) < 6 * GB


def test_one_square_matrix_of_the_report_takes_nine_gigabytes_for_its_distances():
    distances = 147456 * 64 * 256 * 4
    assert 9.5 * GB < distances < 9.7 * GB
    square = Lora(rank=16, alpha=16, targets=("o_proj",))
    recipe = MemorySettings(
        code=TRAINER_CODE, base=Format.FP32, lora=square, loftq=LoftqStart(bits=8)
    )
    levels = host_peak(problem(LORA, recipe, PHI, loftq=Loftq.AT_ONCE))["loftq"]
    assert 2 * distances < levels < 2.1 * distances


def test_every_rank_loads_its_own_copy_without_low_cpu_mem_usage():
    plain = replace(LORA, low_cpu_mem_usage=False)
    one, four = (host_peak(problem(plain, ranks=n))["checkpoint_on_load"] for n in (1, 4))
    assert four == 4 * one
    assert one == 2 * 2 * 8_030_261_248
    mapped = replace(LORA, low_cpu_mem_usage=True)
    assert host_peak(problem(mapped))["checkpoint_on_load"] < one / 4


def test_zero3_reads_the_whole_checkpoint_on_every_rank():
    plan = replace(LORA, low_cpu_mem_usage=True, sharding=Sharding.ZERO3)
    assert host_peak(problem(plan, ranks=2))["checkpoint_on_load"] == 2 * 2 * 8_030_261_248
