"""The monitor's parts, imported into this process: recognition, phases, lines, the GPU cap."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard import monitor

FILES = sorted(monitor.PATH.rglob("*.py"))
CUDA = (
    "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 79.15 GiB of "
    "which 1.20 GiB is free. Including non-PyTorch memory, this process has 77.9 GiB memory in use."
)


@contextlib.contextmanager
def monitor_package() -> Iterator[None]:
    sys.path.insert(0, str(monitor.PATH))
    try:
        yield
    finally:
        sys.path.remove(str(monitor.PATH))


def part(name: str) -> ModuleType:
    with monitor_package():
        return importlib.import_module(f"oomguard_monitor.{name}")


oom, phases, lines, job_state, cap, usage = map(
    part, ("oom", "phases", "lines", "job_state", "cap", "usage")
)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_is_written_in_python_3_8(file: Path):
    tree = ast.parse(file.read_text(), feature_version=(3, 8))
    assert any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_imports_nothing_but_the_standard_library_and_itself(file: Path):
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    tops = {name.split(".")[0] for name in names}
    assert tops <= sys.stdlib_module_names | {"oomguard_monitor"}


@pytest.mark.parametrize(
    ("error", "device", "requested", "capacity"),
    [
        (OutOfMemoryError(CUDA), "cuda", 3 << 29, round(79.15 * 2**30)),
        (OutOfMemoryError("device 0"), None, None, None),
        (
            OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 15.90 GiB total "
                "capacity; 14.77 GiB already allocated)"
            ),
            "cuda",
            20 << 20,
            round(15.9 * 2**30),
        ),
        (
            OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
                "79.15 GiB of which 70 GiB is free. 24.00 GiB allowed; Of the allocated memory"
            ),
            "cuda",
            2 << 30,
            24 << 30,
        ),
        (RuntimeError("CUDA error: out of memory"), "cuda", None, None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "cuda", None, None),
        (RuntimeError("HIP out of memory. Tried to allocate 4.00 GiB."), "cuda", 4 << 30, None),
        (
            RuntimeError(
                "MPS backend out of memory (MPS allocated: 8.84 GB, other allocations: 1.00 MB, "
                "max allowed: 9.07 GB). Tried to allocate 256.00 MB on private pool."
            ),
            None,
            256 << 20,
            round(9.07 * 2**30),
        ),
        (
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 40 bytes."
            ),
            "cpu",
            40,
            None,
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes."),
            "cpu",
            64,
            None,
        ),
        (MemoryError(), "cpu", None, None),
        (MemoryError("Unable to allocate 29.8 GiB for an array"), "cpu", round(29.8 * 2**30), None),
        (RuntimeError("std::bad_alloc"), "cpu", None, None),
        (OSError(12, "Cannot allocate memory"), "cpu", None, None),
        (RuntimeError("unable to mmap 64 bytes: Cannot allocate memory (12)"), "cpu", None, None),
    ],
)
def test_an_oom_is_recognised_with_its_sizes(error, device, requested, capacity):
    found = oom.find(error)
    assert found.error is error
    assert found.device == device
    assert oom.requested_bytes(found.text) == requested
    assert oom.capacity_bytes(found.text) == capacity


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
        RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376"),
        OSError(28, "No space left on device"),
        ValueError("set expandable_segments:True against fragmentation"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_no_oom_is_not_taken_for_one(error):
    assert oom.find(error) is None


def test_a_circle_of_causes_ends():
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert oom.find(one) is None


def test_an_exception_that_cannot_be_shown_is_no_trouble():
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError("mute")

    assert oom.find(MuteError()) is None


SITE = "/v/lib/python3.11/site-packages"
BACKWARD = (f"{SITE}/torch/autograd/__init__.py", "backward")
MODULE = (f"{SITE}/torch/nn/modules/module.py", "_call_impl")
STEP = (f"{SITE}/torch/optim/adamw.py", "step")


@pytest.mark.parametrize(
    ("frames", "phase"),
    [
        ([("train.py", "main")], "load"),
        ([("train.py", "main"), MODULE], "forward"),
        ([("train.py", "main"), BACKWARD, MODULE], "backward"),
        ([("train.py", "main"), STEP], "optimizer"),
        ([STEP, ("train.py", "closure"), MODULE], "forward"),
        ([STEP, ("train.py", "closure"), BACKWARD], "backward"),
        ([(f"{SITE}/torch/nn/utils/clip_grad.py", "clip_grad_norm_")], "optimizer"),
        ([(f"{SITE}/transformers/trainer.py", "evaluation_loop"), MODULE], "eval"),
        ([("train.py", "validate"), MODULE], "eval"),
        ([(f"{SITE}/transformers/trainer.py", "_save_checkpoint")], "save"),
        ([(f"{SITE}/torch/serialization.py", "save")], "save"),
        ([(f"{SITE}/transformers/modeling_utils.py", "from_pretrained")], "load"),
        ([(f"{SITE}/datasets/arrow_dataset.py", "map"), ("train.py", "tokenize")], "preprocess"),
        ([(f"{SITE}/torch/utils/data/dataloader.py", "__next__")], "batch"),
        ([("train.py", "main"), (f"{SITE}/torch/nn/modules/linear.py", "__init__")], "load"),
        ([("train.py", "main"), (f"{SITE}/torch/nn/modules/module.py", "_apply")], "load"),
    ],
)
def test_frames_show_the_phase(frames, phase):
    assert phases.of_frames(frames, "load") == phase


def test_a_long_line_loses_its_frames_and_stays_valid():
    line = lines.encode({"type": "oom", "message": "m", "frames": ["x" * 1000] * 100})
    assert json.loads(line) == {"type": "oom", "message": "m", "frames": []}


@given(st.text(max_size=9000), st.lists(st.text(max_size=300), max_size=300))
def test_every_line_is_one_line_of_at_most_64_kib(text, frames):
    line = lines.encode({"type": "oom", "message": lines.cut(text), "frames": frames})
    assert len(line) <= 64 << 10
    assert line.count(b"\n") == 1
    assert json.loads(line)["message"] == lines.cut(text)


@given(st.lists(st.sampled_from(["backward", "optimizer", "eval", "save", "preprocess", "load"])))
def test_however_phases_nest_they_unwind(names):
    now = job_state.MonitorState()
    now.phase = "forward"
    entered = [(name, now.enter(name)) for name in names]
    for name, before in reversed(entered):
        now.leave(name, before)
    assert now.phase == "forward"


class FakeCuda:
    """`torch.cuda` of a machine with two devices of 80 GB; it cannot be had here."""

    def __init__(self) -> None:
        self.queued, self.caps, self.contexts, self.selected = [], {}, [], 0

    def _lazy_call(self, call):
        self.queued.append(call)

    def start(self):
        for call in self.queued:
            call()

    def device_count(self):
        return 2

    def current_device(self):
        return self.selected

    def set_device(self, number):
        self.selected = number

    def get_device_properties(self, number):
        return SimpleNamespace(total_memory=80 * 10**9)

    @contextlib.contextmanager
    def device(self, number):
        before, self.selected = self.selected, number
        yield
        self.selected = before

    def set_per_process_memory_fraction(self, fraction, number):
        assert self.selected == number
        self.caps[number] = fraction


def capped(monkeypatch, limit_bytes, local_rank=None):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    faults = []
    reporter = SimpleNamespace(disabled=False, disable=faults.append)
    cuda = FakeCuda()
    namespace = SimpleNamespace(**{n: getattr(cuda, n) for n in dir(cuda) if n[:2] != "__"})
    patches = part("install").Patches(reporter, lambda: False)
    cap.cap_gpu_memory(SimpleNamespace(cuda=namespace), limit_bytes, patches)
    return cuda, namespace, faults


def test_the_gpu_cap_waits_for_cuda_and_covers_all_devices_of_a_process_alone(monkeypatch):
    cuda, _, faults = capped(monkeypatch, 24 * 10**9)
    assert cuda.caps == {}
    cuda.start()
    assert cuda.caps == {0: 0.3, 1: 0.3}
    assert (cuda.selected, faults) == (0, [])


def test_a_rank_caps_its_own_device_and_those_it_selects(monkeypatch):
    cuda, namespace, _ = capped(monkeypatch, 24 * 10**9, local_rank="1")
    cuda.start()
    assert cuda.caps == {1: 0.3}
    namespace.set_device(0)
    assert cuda.caps == {0: 0.3, 1: 0.3}


def test_a_cap_above_the_card_is_the_card(monkeypatch):
    cuda, _, _ = capped(monkeypatch, 10**12)
    cuda.start()
    assert cuda.caps == {0: 1.0, 1: 1.0}


def test_a_cap_that_cannot_be_set_is_a_fault_and_does_not_stop_cuda(monkeypatch):
    cuda, namespace, faults = capped(monkeypatch, 10**9)
    namespace.get_device_properties = lambda number: 1 // 0
    cuda.start()
    assert [type(fault) for fault in faults] == [ZeroDivisionError]


def fake_cuda(*, initialized=True, mem_get_info=lambda number: (60, 80)):
    stats = [
        {"allocated_bytes.all.current": 1, "allocated_bytes.all.peak": 3}
        | {"reserved_bytes.all.current": 2, "reserved_bytes.all.peak": 4},
        {},
    ]
    return SimpleNamespace(
        is_initialized=lambda: initialized,
        device_count=lambda: 2,
        memory_stats=stats.__getitem__,
        mem_get_info=mem_get_info,
    )


def test_devices_in_use_are_measured_and_no_others_touched():
    asked = []
    cuda = fake_cuda(mem_get_info=lambda number: asked.append(number) or (60, 80))
    (device,) = usage.measure(SimpleNamespace(cuda=cuda))["cuda"]
    assert asked == [0]
    assert device == {
        "device": 0,
        "allocated_bytes": 1,
        "reserved_bytes": 2,
        "peak_allocated_bytes": 3,
        "peak_reserved_bytes": 4,
        "free_bytes": 60,
        "total_bytes": 80,
    }


def test_a_broken_device_keeps_what_the_allocator_knows():
    cuda = fake_cuda(mem_get_info=lambda number: 1 // 0)
    (device,) = usage.measure(SimpleNamespace(cuda=cuda))["cuda"]
    assert (device["peak_allocated_bytes"], device["free_bytes"]) == (3, None)


def test_cuda_that_is_not_in_use_is_left_alone():
    assert usage.measure(SimpleNamespace(cuda=fake_cuda(initialized=False)))["cuda"] == []


def test_a_report_gives_up_its_reserve_and_then_its_extent(monkeypatch):
    sent, held = [], []
    channel = SimpleNamespace(send=lambda line: sent.append(json.loads(line)) or True)
    reporter = part("reporter").Reporter(SimpleNamespace(), channel, quiet=False)

    def full(torch):
        held.append(reporter._reserve)
        raise MemoryError

    monkeypatch.setattr(usage, "measure", full)
    reporter.ended(MemoryError("a list"))
    assert held == [None]
    assert len(reporter._reserve) > 0
    (line,) = sent
    assert (line["type"], line["uncaught"], line["message"]) == ("oom", True, "a list")
    assert line["frames"] == []


def test_a_report_of_divided_steps_has_the_widest_and_comes_before_one_that_ran_out():
    sent = []
    channel = SimpleNamespace(send=lambda line: sent.append(json.loads(line)) or True)
    reporter = part("reporter").Reporter(SimpleNamespace(), channel, quiet=False)
    account = part("in_place_trainer").Account
    seen = [(1, 64, 64), (4, 256, 0), (2, 900, 0), (1, 900, 0), (4, 128, 0), (1, 512, 700)]
    for step, (rows, width, refused) in enumerate(seen):
        reporter.state.step = step
        one = account()
        one.parts, one.rows, one.width, one.tokens = 16 // rows, rows, width, 16 * width
        if refused:
            one.fail(2 * refused)
            one.fail(refused)
        reporter.split(one, {})
    names = ("steps", "spans", "rows", "width", "failed", "refused")
    assert [tuple(line[name] for name in names) for line in sent] == [
        (1, [[1, 1]], 1, 64, 2, 64),
        (4, [[2, 5]], 2, 900, 0, 0),
        (1, [[6, 6]], 1, 512, 2, 700),
    ]


def of_module(name, **members):
    """Return a class that a module of a framework has, as far as its name shows."""
    for member in members.values():
        if callable(member):
            member.__module__ = name
    return type("Theirs", (), {"__module__": name, **members})


def why_not_divided(module, *, template=None, args=None, is_moe=False):
    """Return why the steps of a trainer of some module are not divided."""
    prepare = lambda self, inputs: inputs  # noqa: E731  its module is set
    trainer = of_module(module, _prepare_inputs=prepare)()
    kind = SimpleNamespace(distributed_type="NO", num_processes=1)
    trainer.accelerator = kind
    trainer.args = SimpleNamespace(**(args or {}))
    trainer.template = template
    model = SimpleNamespace(
        parameters=list, modules=list, model_info=SimpleNamespace(is_moe_model=is_moe)
    )
    norm = SimpleNamespace(_BatchNorm=type("_BatchNorm", (), {}))
    torch = SimpleNamespace(nn=SimpleNamespace(modules=SimpleNamespace(batchnorm=norm)))
    return part("in_place_scope").why_not(trainer, model, torch)


SFT = "swift.trainers.seq2seq_trainer"


def template(module="swift.template.base", **values):
    context = lambda self, model, inputs: None  # noqa: E731  its module is set
    made = of_module(module, forward_context=context)()
    vars(made).update({"sequence_parallel_size": 1, "padding_free": False, **values})
    return made


def test_swift_sft_is_divided_unless_its_template_or_its_router_looks_at_the_whole_batch():
    assert why_not_divided(SFT, template=template()) is None
    own = "swift.template.templates.qwen"
    assert why_not_divided(SFT, template=template(own)) is None
    for reason, found in {
        "the template passes the places": template(own, padding_free=True),
        "sequence parallelism communicates": template(sequence_parallel_size=2),
    }.items():
        assert why_not_divided(SFT, template=found).startswith(reason)
    aux = {"router_aux_loss_coef": 1e-3}
    assert why_not_divided(SFT, template=template(), args=aux) is None
    router = why_not_divided(SFT, template=template(), args=aux, is_moe=True)
    assert router == "the router's auxiliary loss depends on the whole batch"
    rlhf = why_not_divided("swift.rlhf_trainers.rlhf_mixin", template=template())
    assert rlhf == "Theirs prepares its batches in the training step"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("orpo_alpha", "the loss of ORPO"), ("layer_offloading", "layers are moved")],
)
def test_axolotls_own_losses_and_offloaded_layers_are_not_divided(setting, reason):
    assert why_not_divided("transformers.trainer", args={}) is None
    assert why_not_divided("transformers.trainer", args={setting: 0.1}).startswith(reason)


class Adds:
    """A metric that adds up values and their number, as ms-swift's do."""

    def __init__(self):
        self.state, self.count = 0.0, 0

    def update(self, values):
        self.state, self.count = self.state + sum(values), self.count + len(values)


def test_what_a_trainer_counts_itself_is_taken_back_with_a_failed_step():
    accounts = part("split_accounts").Accounts
    kept = Adds()
    kept.update([1, 0])
    trainer = SimpleNamespace(
        custom_metrics={"train": {"token_acc": kept}, "eval": {}}, state=SimpleNamespace()
    )
    before = accounts(trainer)
    kept.update([1, 1, 1])
    trainer.custom_metrics["train"]["other"] = Adds()
    trainer.state.tokens = {"trainable": 8, "total": 16}
    before.restore()
    assert list(trainer.custom_metrics["train"]) == ["token_acc"]
    assert (kept.state, kept.count) == (1.0, 2)
    assert not hasattr(trainer.state, "tokens")


def test_tokens_that_parts_left_out_as_padding_count_as_those_of_the_batch():
    accounts = part("split_accounts").Accounts
    trainer = SimpleNamespace(state=SimpleNamespace(tokens={"trainable": 100, "total": 500}))
    before = accounts(trainer)
    trainer.state.tokens = {"trainable": 160, "total": 580}  # the parts had 80 of 128
    before.join([0.5, 0.5], 128)
    assert trainer.state.tokens == {"trainable": 160, "total": 628}
    before = accounts(trainer)
    before.join([0.5, 0.5], 128)  # an evaluation counts none
    assert trainer.state.tokens == {"trainable": 160, "total": 628}
    trainer.state.tokens = {"trainable": 0, "total": 0}
    before.restore()
    assert trainer.state.tokens == {"trainable": 160, "total": 628}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "OURS"),
        ("", "OURS"),
        ("OURS", "OURS"),
        ("/theirs:/more", "OURS:/theirs:/more"),
        ("/theirs:OURS:/more", "OURS:/theirs:/more"),
        ("OURS/:/theirs:OURS", "OURS:/theirs"),
        ("/theirs:", "OURS:/theirs:"),  # an empty entry is the working folder
    ],
)
def test_our_folder_is_first_on_the_python_path_and_there_once(before, after):
    ours = str(monitor.PATH)
    env = {} if before is None else {"PYTHONPATH": before.replace("OURS", ours)}
    found = monitor.add_monitor(env, socket=Path("/s"), buffer=Path("/b"))
    assert found["PYTHONPATH"] == after.replace("OURS", ours)


def test_the_environment_names_the_socket_and_the_caps_and_keeps_the_rest():
    env = {"HOME": "/h", "OOMGUARD_SOCKET": "/of/an/outer/run"}
    found = monitor.add_monitor(env, socket=Path("/s"), buffer=Path("/b"), gpu_memory_bytes=5)
    assert found == {
        "HOME": "/h",
        "PYTHONPATH": str(monitor.PATH),
        "OOMGUARD_SOCKET": "/s",
        "OOMGUARD_BUFFER": "/b",
        "OOMGUARD_GPU_MEMORY": "5",
    }


@pytest.mark.parametrize(
    ("limit_bytes", "used_bytes", "is_oom"),
    [(1000, 950, True), (1000, 500, False), (resource.RLIM_INFINITY, 950, False)],
)
def test_what_onednn_says_of_any_failure_is_an_oom_at_the_limit_of_the_process(
    monkeypatch, limit_bytes, used_bytes, is_oom
):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit_bytes, limit_bytes))
    monkeypatch.setattr(usage, "data_bytes", lambda: used_bytes)
    found = oom.find(RuntimeError("could not create a primitive"))
    assert (found is not None) is is_oom
    assert found is None or found.device == "cpu"


def timed_steps(timing, steps, monkeypatch):
    """Run steps of given batches: each is seconds, tokens, and how many parts of how many."""
    clock = [100.0]
    monkeypatch.setattr(part("split_timing").time, "monotonic", lambda: clock[0])
    for seconds, *batches in steps:
        timing.begin(clock[0])
        clock[0] += seconds
        for batch in batches:
            timing.ran(*batch) if batch else timing.failed()
    timing.begin(clock[0])


def test_steps_are_timed_whole_and_in_parts_but_not_the_first_and_those_that_failed(monkeypatch):
    timing = part("split_timing").Timing()
    whole, parts, none = (64,), (256, 4, 240), ()
    steps = [(9, whole), (1, whole), (5, parts), (7, none, parts), (2, whole, whole), (6, parts)]
    timed_steps(timing, steps, monkeypatch)
    assert timing.told()["whole"] == {
        "steps": 2, "batches": 3, "passes": 3, "tokens": 192, "whole_tokens": 192, "seconds": 3.0,
    }  # fmt: skip
    assert timing.told()["divided"] == {
        "steps": 2, "batches": 2, "passes": 8, "tokens": 480, "whole_tokens": 512, "seconds": 11.0,
    }  # fmt: skip
    assert timing.told()["halved"]["steps"] == 0


def test_after_eight_steps_in_parts_one_runs_in_twice_as_many(monkeypatch):
    module = part("split_timing")
    timing, limits = module.Timing(), []
    for _ in range(module.ALIKE + 4):
        timed_steps(timing, [(1, (256, 4, 256))], monkeypatch)
        assert timing.limit(128, 128) == 128  # it goes through whole
        limits.append(timing.limit(128, 256))
        timing.ran(256, 8, 256)
    assert limits.count(64) == 1
    assert timing.told()["halved"]["steps"] == 1
