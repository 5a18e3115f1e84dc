"""Holds what `oomguard plan` says of a sharded plan against ranks that were measured.

The ranks run over gloo on the CPU, so the constants of a GPU (context, cuBLAS, NCCL, allocator
slack) are left out of what is predicted, and activations come from a trace of the CPU's operators.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from environments import environment
from sharded_cases import CONFIG, LORA_ALPHA, Case

import oomguard.tracer
from oomguard.adapters.hf.hf_memory import TRAINER_CODE
from oomguard.catalogue.lookup import Model
from oomguard.estimate import constants
from oomguard.estimate.analytic import gradients, static
from oomguard.estimate.combine import Traced, traced_terms
from oomguard.estimate.host import host_peak
from oomguard.estimate.memory import Term, allocated
from oomguard.estimate.sharding import rank_fractions
from oomguard.job.memory_settings import ALL_LINEAR, Family, Format, Lora, MemorySettings
from oomguard.job.plan import LossKernel, Offload, Plan, Precision, Quantization, Sharding, Tuning
from oomguard.job.training_job import Job, World
from oomguard.predict import trace_request
from oomguard.predict.prediction_request import PredictionRequest

HERE = Path(__file__).parent
#: LLaMA-Factory's environment is the one that has DeepSpeed.
ENVIRONMENT = "llamafactory"


def measured(cases: Sequence[Case], folder: Path) -> list[dict[str, Any]]:
    """Run the cases on real ranks; rows of bytes, the rank that held the most."""
    counter = folder / "tensor_bytes.so"
    source = HERE / "standins" / "tensor_bytes.c"
    compiler = shutil.which("cc") or shutil.which("gcc") or "cc"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", counter, source], check=True)
    names = [case.name for case in cases]
    with (folder / "ranks.log").open("w") as log:
        done = subprocess.run(
            [environment(ENVIRONMENT), "-W", "ignore", HERE / "sharded_ranks.py", *names],
            env=os.environ | {"LD_PRELOAD": str(counter), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            check=True,
        )
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def question(case: Case) -> PredictionRequest:
    """Put a case as `oomguard plan` would."""
    lora = case.lora_rank > 0
    plan = Plan(
        micro_batch=case.micro_batch,
        accumulation=case.accumulation,
        sequence_length=case.length,
        checkpointing=case.checkpointing,
        precision=Precision.BF16_MIXED if case.bf16 else Precision.FP32,
        quantization=Quantization.NONE,
        tuning=Tuning.LORA if lora else Tuning.FULL,
        lora_rank=case.lora_rank or None,
        sharding=Sharding(case.sharding),
        offload=frozenset(Offload(name) for name in case.offload),
        optimizer=case.optimizer,
        loss_kernel=LossKernel.EAGER,
    )
    targets = (ALL_LINEAR,)
    recipe = MemorySettings(
        code=TRAINER_CODE,
        base=Format.BF16 if case.bf16_weights else None,
        lora=Lora(rank=case.lora_rank, alpha=LORA_ALPHA, targets=targets) if lora else None,
        foreach="fused" not in case.optimizer,
    )
    config = {**CONFIG, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    world = World(per_node=case.ranks)
    job = Job(framework="hf_trainer", argv=("train",), cwd="/", config=None, asked=plan,
              packages=frozenset({"deepspeed"}), world=world)  # fmt: skip
    model = Model(name="tiny", family=Family.HF, config=config, source="test")
    return PredictionRequest(
        job=job, recipe=recipe, model=model, plans=(plan,), capacity_bytes=1 << 40
    )


def traced(cases: Sequence[Case]) -> list[Traced]:
    """Trace the step of each case with the CPU's operators, all in one child."""
    steps = []
    for case in cases:
        asked = question(case)
        step = trace_request.variant(asked, asked.plans[0])
        assert step is not None
        steps.append({**step, "recipe": {**step["recipe"], "cuda": False}})  # type: ignore[dict-item]
    different = {json.dumps(step, sort_keys=True): step for step in steps}
    document = {
        "v": 1,
        "model": trace_request.model(question(cases[0])),
        "variants": [{"id": key, **step} for key, step in different.items()],
    }
    done = subprocess.run(
        [environment(ENVIRONMENT), "-W", "ignore", "-m", "oomguard_tracer"],
        env=os.environ | {"PYTHONPATH": oomguard.tracer.PYTHONPATH, "CUDA_VISIBLE_DEVICES": ""},
        input=json.dumps(document).encode(),
        capture_output=True,
        check=True,
    )
    answers = {}
    for result in json.loads(done.stdout)["results"]:
        assert "estimate" in result, result
        answers[result["id"]] = _unrounded(Traced(**result["estimate"]))
    return [answers[json.dumps(step, sort_keys=True)] for step in steps]


def _unrounded(trace: Traced) -> Traced:
    """Leave out what the allocator of a GPU adds to every block."""
    terms = {name: size for name, size in trace.terms.items() if name != "allocator_slack"}
    size = sum(terms.values())
    return replace(trace, allocated_bytes=size, reserved_bytes=size, terms=terms)


def predicted(case: Case, trace: Traced) -> dict[str, int]:
    """Return the terms that tensors on a CPU have, and the bytes offloaded to the host."""
    asked = question(case)
    problem = asked.problem(asked.plans[0])
    live = case.zero.get("stage3_max_live_parameters", constants.MAX_LIVE_PARAMETERS)
    with mock.patch.object(constants, "MAX_LIVE_PARAMETERS", live):
        terms = dict(traced_terms(trace, problem))
    terms.pop(Term.WORKSPACES, None)
    if case.ranks > 1:
        terms[Term.COMMUNICATION_BUFFERS] -= constants.CUDA.nccl_bytes
    after = gradients(problem, rank_fractions(problem.plan, case.ranks).after)
    held = static(problem)
    standing = {
        "weights": held[Term.WEIGHTS] + held[Term.ADAPTER],
        "gradients": sum(after.values()),
        "optimizer": held[Term.OPTIMIZER],
    }
    device = allocated(terms)
    host = host_peak(problem).get("offloaded", 0) // case.ranks
    return _with_rest(standing, device + host, host)


def compared(cases: Sequence[Case], folder: Path) -> list[dict[str, Any]]:
    """Measure and predict; a row for each case.

    `weights`, `gradients` and `optimizer` stand when the optimizer begins, `rest` is what the peak
    holds beside them. On a CPU `host` is part of all the others.
    """
    return held_against(cases, measured(cases, folder), traced(cases))


def held_against(
    cases: Sequence[Case], rows: Sequence[dict[str, Any]], traces: Sequence[Traced]
) -> list[dict[str, Any]]:
    """Put measured and predicted side by side."""
    found = []
    for case, row, trace in zip(cases, rows, traces, strict=True):
        assert "failed" not in row, f"{case.name}: {row['failed']}"
        said, held = predicted(case, trace), _held(case, row)
        error = round(said["peak"] / held["peak"] - 1, 4)
        found.append({"name": case.name, "measured": held, "predicted": said, "error": error})
    return found


def _held(case: Case, row: dict[str, Any]) -> dict[str, int]:
    """Read what stood when the optimizer began, and the most in any step."""
    steps = [size for name, size in row["phases"].items() if name not in ("begin", "end")]
    stood = row["standing"]
    host = stood["optimizer"] + stood["gradients"] + stood["other"] if case.offload else 0
    host += stood["weights"] if "parameters" in case.offload else 0
    standing = {name: stood[name] for name in ("weights", "gradients", "optimizer")}
    return _with_rest(standing, max(steps), host)


def _with_rest(standing: dict[str, int], peak: int, host: int) -> dict[str, int]:
    return {**standing, "rest": peak - sum(standing.values()), "peak": peak, "host": host}
