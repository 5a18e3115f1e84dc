# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Traces the plans of a request and says what each would take."""

from __future__ import annotations

import gc
import importlib
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from . import hf, training_step
from .allocator import fits, replay
from .built import Built, Unsupported
from .control import RealControl
from .cuda import cuda_operators
from .expand import Irregular, expand
from .experts import grouped_products
from .fakes import materialize
from .places import attach
from .quantized import QuantizedLinear
from .recorder import Recorder
from .request import TraceRequest, Variant
from .trace import MemoryEvent, Trace, peak


def answer(request: TraceRequest) -> dict[str, Any]:
    """Answer a request: one result per plan, an error in place of an estimate where it fails."""
    results = [_result(request, variant) for variant in request.variants]
    return {"v": 1, "results": results, "versions": _versions()}


def _result(request: TraceRequest, variant: Variant) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        trace, method = traced(request, variant)
        result = {"id": variant.id, **estimate(trace, request.capacity_bytes)}
        result["estimate"]["method"] = method
    except Unsupported as error:
        return {"id": variant.id, "error": {"kind": "unsupported", "message": str(error)}}
    except Exception as error:  # noqa: BLE001  any model code may fail; the caller falls back
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return {"id": variant.id, "error": {"kind": "trace_failed", "message": message}}
    result["seconds"] = round(time.perf_counter() - start, 3)
    return result


def traced(request: TraceRequest, variant: Variant) -> tuple[Trace, str]:
    """Trace a plan, over all layers or over a few and extrapolated."""
    built, trace = _run(request, variant)
    if not any(depth.missing for depth in built.depths):
        return trace, "trace"
    try:
        return _extended(trace, built), "trace-extrapolated"
    except Irregular as reason:
        print(f"tracing all layers: {reason}", file=sys.stderr)  # noqa: T201  stdout is the answer
        full = {name: getattr(variant, name) for name in Variant.__dataclass_fields__}
        return _run(request, Variant(**{**full, "full_depth": True}))[1], "trace"


def _extended(trace: Trace, built: Built) -> Trace:
    for depth in built.depths:
        trace = expand(trace, depth.stack, depth.missing)
    return trace


def _run(request: TraceRequest, variant: Variant) -> tuple[Built, Trace]:
    built = _builder(request.family)(request, variant)
    gc.collect()
    gc.disable()  # a collection in the middle of a step would make traces differ
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, RealControl(fake):
            materialize(built.model)
            built.model.train()
            tracer = Recorder()
            tracer.sequence_length = variant.sequence_length
            tracer.rows = variant.micro_batch * variant.rows
            for module in built.model.modules():
                if isinstance(module, QuantizedLinear):
                    module.tracer = tracer
            attach(tracer, built)
            operators = cuda_operators() if variant.cuda else nullcontext()
            with tracer, grouped_products(), operators:
                optimizer = training_step.run(built, variant, tracer)
            tracer.close()
            del optimizer  # whose states are there to the end
    finally:
        gc.enable()
    if variant.cuda:
        _workspaces(tracer.trace, variant.workspace_bytes)
    return built, tracer.trace


def _builder(family: str) -> Callable[[TraceRequest, Variant], Built]:
    """Return what builds models of a family: transformers' here, others beside their adapters."""
    if family == "hf":
        return hf.build
    build: Callable[[TraceRequest, Variant], Built]
    build = importlib.import_module(f"oomguard_traced_models.{family}_model").build
    return build


def _workspaces(trace: Trace, size_bytes: int) -> None:
    """Add cuBLAS's workspaces: one for the forward's thread, one for the backward's."""
    numbers = [max(trace.terms, default=0) + len(trace.events) + extra for extra in (1, 2)]
    for number in numbers:
        trace.events.insert(0, MemoryEvent(number, size_bytes, None))
        trace.terms[number] = "workspace"


def estimate(trace: Trace, capacity_bytes: int | None) -> dict[str, Any]:
    """Replay a trace and sum it up."""
    most = peak(trace)
    default = replay(trace.events)
    expandable = replay(trace.events, expandable=True)
    terms = dict(most.terms)
    terms["allocator_slack"] = default.peak_reserved_bytes - most.size_bytes
    found = None if capacity_bytes is None else fits(trace.events, capacity_bytes)
    return {
        "estimate": {
            "allocated_bytes": default.peak_allocated_bytes,
            "reserved_bytes": default.peak_reserved_bytes,
            "reserved_expandable_bytes": expandable.peak_reserved_bytes,
            "terms": terms,
        },
        "fits_replay": found,
    }


def _versions() -> dict[str, str]:
    """Return the versions of the packages that the trace has imported."""
    from importlib import metadata  # noqa: PLC0415  only needed once

    return {d.name: d.version for d in metadata.distributions() if d.name in sys.modules}
