"""How a log is read: prefixes, tracebacks of each dialect, progress, schedulers, precedence."""

# ruff: noqa: E501 -- messages are quoted as they are printed
from __future__ import annotations

import pytest

from oomguard.evidence.frames import Frame, frame_of, traceback_before
from oomguard.evidence.judge import judge_log
from oomguard.evidence.log_lines import Line, read_line, unpack
from oomguard.evidence.progress import announced_total, step_of
from oomguard.evidence.settle import what_settles
from oomguard.evidence.verdict import Confidence, Kind, Phase

GIB = 1 << 30
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
STEPS = "".join(f"step {i} loss 2.5\n" for i in range(1, 6))


@pytest.mark.parametrize(
    ("line", "text", "rank"),
    [
        ("[rank3]: ValueError: no", "ValueError: no", 3),
        ("[1,2]<stderr>:ValueError: no", "ValueError: no", 2),
        ("(TrainWorker pid=812, ip=10.0.0.7) ValueError: no", "ValueError: no", None),
        ("W0801 16:07:20.955000 1648 torch/api.py:900] Sending signal", "Sending signal", None),
        ("Jul 18 08:23:17 node train[26]: ValueError: no", "ValueError: no", None),
        ("[Sun Mar 24 23:54:53 2024] oom-kill:constraint", "oom-kill:constraint", None),
        ("2024-05-01T10:00:00.123Z [rank1]: > ValueError: no", "ValueError: no", 1),
        ("│ ValueError: no      │", "ValueError: no", None),
        ("worker-0  | ValueError: no", "ValueError: no", None),
        ('[rank0]:   File "a.py", line 3, in f', '  File "a.py", line 3, in f', 0),
        ("| Allocated memory |  1 MB |", "Allocated memory |  1 MB |", None),
        ("ValueError: [1, 2]", "ValueError: [1, 2]", None),
        ("**ValueError: no**", "ValueError: no", None),
        ("`ValueError: no`", "ValueError: no", None),
        ("***** Running Evaluation *****", "***** Running Evaluation *****", None),
        ("**ValueError**: no", "**ValueError**: no", None),
    ],
)  # fmt: skip
def test_what_stands_before_a_line_is_no_part_of_it(line: str, text: str, rank: int | None) -> None:
    read = read_line(line.encode())
    assert (read.text, read.rank) == (text, rank)


def test_a_record_of_a_structured_log_holds_lines() -> None:
    record = b'{"levelname": "ERROR", "message": "failed", "exc_info": "Traceback:\\n  x\\nValueError: no"}'
    assert [line.text for line in unpack(record)] == [
        "failed",
        "Traceback:",
        "  x",
        "ValueError: no",
    ]
    assert [line.text for line in unpack(b'{"loss": 1.5, "step": 3}')] == [
        '{"loss": 1.5, "step": 3}'
    ]


@pytest.mark.parametrize(
    ("line", "frame"),
    [
        ('  File "/x/a.py", line 3, in forward', Frame("/x/a.py", "forward")),
        ("/x/a.py in forward(self, x)", Frame("/x/a.py", "forward")),
        ("File /x/a.py:311, in Net.forward(self, x)", Frame("/x/a.py", "Net.forward")),
        ("[/x/a.py](https://localhost:8080/#) in forward(self, x)", Frame("/x/a.py", "forward")),
        ("Cell In[7], line 1", Frame("In[7]", "<module>")),
        ("<ipython-input-13-9418> in <cell line: 1>()", Frame("<ipython-input-13-9418>", "<cell")),
        (" /x/trainer.py:1645 in train ", Frame("/x/trainer.py", "train")),
        ("frame #7: at::native::empty_cuda(c10::ArrayRef) + 0x2d (0x7f in /x/libtorch_cuda.so)", Frame("/x/libtorch_cuda.so", "at::native::empty_cuda")),
        ("#12 0x00007f in torch::autograd::Engine::thread_main (this=0x1) from libtorch.so", Frame("libtorch.so", "torch::autograd::Engine::thread_main")),
        ("    at Worker.run (/x/pool.js:10:5)", Frame("/x/pool.js", "Worker.run")),
    ],
)  # fmt: skip
def test_frames_are_read_in_each_dialect(line: str, frame: Frame) -> None:
    assert frame_of(line) == frame


@pytest.mark.parametrize(
    "line",
    ["{'loss': 2.0}", "step 3 in epoch 2", "running in a.py", "see #12 in the list (of issues)"],
)
def test_other_lines_are_no_frames(line: str) -> None:
    assert frame_of(line) is None


def test_a_frame_that_a_terminal_broke_is_joined() -> None:
    lines = [
        Line('  File "/x/torch/autograd/__i', 1),
        Line('nit__.py", line 267, in backward', None),
    ]
    assert traceback_before(lines, 1).frames == (
        Frame("/x/torch/autograd/__init__.py", "backward"),
    )


NOTEBOOK = """\
OutOfMemoryError                          Traceback (most recent call last)
Cell In[7], line 1
----> 1 trainer.train()
File /x/site-packages/transformers/trainer.py:2052, in Trainer.train(self, **kwargs)
   2050     finally:
   2051         pass
-> 2052 return inner_training_loop(
   2053     args=args,
File /x/site-packages/transformers/trainer.py:3000, in Trainer.evaluate(self)
-> 3000 output = eval_loop(
"""


def test_a_notebook_names_the_error_above_its_traceback() -> None:
    verdict = judge_log([NOTEBOOK.encode()])
    assert (verdict.kind, verdict.phase) == (Kind.DEVICE_OOM, Phase.EVAL)
    whole = judge_log([(NOTEBOOK + "\n" + OOM).encode()])
    assert (whole.kind, whole.phase, whole.requested_bytes) == (
        Kind.DEVICE_OOM,
        Phase.EVAL,
        2 * GIB,
    )


def test_a_traceback_below_a_logged_message_tells_the_phase() -> None:
    text = (
        "ERROR: CUDA out of memory. Tried to allocate 2.00 GiB.\nTraceback (most recent call last):\n"
        '  File "/x/site-packages/transformers/trainer.py", line 3, in training_step\n    self.accelerator.backward(loss)\n'
        '  File "/x/site-packages/accelerate/accelerator.py", line 3, in backward\n    loss.backward()\n'
    )
    assert judge_log([text.encode()], 1).phase is Phase.BACKWARD


def test_a_box_around_a_traceback_is_seen_through() -> None:
    text = (
        "╭──────── Traceback (most recent call last) ────────╮\n"
        "│ /x/site-packages/transformers/trai                │\n"
        "│ ner.py:3355 in _save_checkpoint                   │\n"
        "│                                                   │\n"
        "│ ❱ 3355 │   self._save(model)                      │\n"
        "╰───────────────────────────────────────────────────╯\n" + OOM
    )
    assert judge_log([text.encode()], 1).phase is Phase.SAVE


@pytest.mark.parametrize(
    ("frames", "phase"),
    [
        (("/x/peft/peft_model.py:save_pretrained", "/x/torch/nn/modules/module.py:_apply"), Phase.SAVE),
        (("train.py:evaluate", "/x/torch/nn/modules/module.py:_apply"), Phase.EVAL),
        (("train.py:validate", "train.py:save_checkpoint"), Phase.SAVE),
        (("/x/pytorch_lightning/strategies/strategy.py:validation_step", "net.py:forward"), Phase.EVAL),
        (("/x/torch/utils/checkpoint.py:unpack_hook", "net.py:forward"), Phase.BACKWARD),
        (("/x/trl/trainer/grpo_trainer.py:_generate_and_score_completions", "net.py:attend"), Phase.FORWARD),
        (("/x/deepspeed/runtime/zero/stage3.py:initialize_optimizer_states", "a.py:step"), Phase.OPTIMIZER),
    ],
)  # fmt: skip
def test_outer_contexts_come_before_inner_ones(frames: tuple[str, ...], phase: Phase) -> None:
    lines = [f'  File "{f.split(":")[0]}", line 3, in {f.split(":")[1]}\n' for f in frames]
    text = "Traceback (most recent call last):\n" + "".join(lines) + OOM
    assert judge_log([text.encode()], 1).phase is phase


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_message_that_a_terminal_broke_inside_its_words_keeps_its_sizes(width: int) -> None:
    message = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total"
        " capacity of 23.50 GiB of which 1.59 GiB is free. Including non-PyTorch memory"
    )
    rows = [message[at : at + width] for at in range(0, len(message), width)]
    verdict = judge_log(["\n".join(rows).encode()], 1)
    assert (verdict.kind, verdict.requested_bytes) == (Kind.DEVICE_OOM, round(2.5 * GIB))
    assert verdict.capacity_bytes == round(23.5 * GIB)


@pytest.mark.parametrize(
    "broken",
    [
        "RuntimeError: CUDA out of\nmemory. Tried to allocate 2.00 GiB.\n",
        "RuntimeError: CUDA out of me\nmory. Tried to allocate 2.00 GiB.\n",
    ],
)
def test_the_words_themselves_may_be_broken(broken: str) -> None:
    verdict = judge_log([b"step 1 loss 2\n", broken.encode()], 1)
    assert (verdict.kind, verdict.evidence[0].line) == (Kind.DEVICE_OOM, 2)
    assert verdict.requested_bytes == 2 * GIB


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("step 9 loss 2.5", 9),
        ("[Rank 0] step=2500, skipped=0, lr=[0.05]", 2500),
        (" 3%|3   | 9/352 [40:55<25:10:16, 264.19s/it]", None),
        (" 3%|3   | 9/352 [40:55<25:10:16, 264.19s/it, loss=2.1]", 9),
        ("Downloading: 3%|3   | 9/352 [40:55<25:10:16, loss=2.1]", None),
        ("100%|####| 3000001/3000001 [03:33<00:00, 14061.26it/s]", None),
        ("Map: 40%|## | 400/1000 [00:01<00:01, 330.0 examples/s]", None),
        ("{'eval_loss': 2.5, 'epoch': 1.0}", None),
    ],
)  # fmt: skip
def test_what_counts_as_a_step(line: str, step: int | None) -> None:
    assert step_of(line) == step


def test_a_bare_bar_counts_against_an_announced_total() -> None:
    assert announced_total("  Total optimization steps = 1,352") == 1352
    assert step_of(" 3%|3   | 9/1352 [40:55<25:10:16, 264.19s/it]", [1352]) == 9
    log = "  Total optimization steps = 352\n" + "".join(
        f" 3%| | {i}/352 [00:05<01:10, 2.0s/it]\n" for i in (7, 8, 9)
    )
    assert judge_log([log.encode(), b"ValueError: no\n"], 1).evidence[0].step == 9


class TestPrecedence:
    def test_steps_after_an_oom_do_not_undo_it_where_the_job_failed(self) -> None:
        verdict = judge_log([(OOM + STEPS).encode()], 1)
        assert (verdict.kind, verdict.requested_bytes) == (Kind.DEVICE_OOM, 2 * GIB)
        assert judge_log([(OOM + STEPS).encode()], 0).kind is Kind.OK
        assert judge_log([(OOM + STEPS).encode()]).kind is Kind.OK

    def test_an_oom_that_came_last_is_not_undone_by_a_word(self) -> None:
        text = OOM + "Training completed! Total time: 16s\n"
        assert judge_log([text.encode()]).kind is Kind.DEVICE_OOM
        assert judge_log([text.encode()], 1).kind is Kind.DEVICE_OOM
        assert judge_log([text.encode()], 0).kind is Kind.OK

    def test_a_sigkill_long_after_an_oom_that_was_survived_is_not_its_work(self) -> None:
        assert judge_log([(OOM + STEPS).encode()], -9).kind is Kind.UNKNOWN

    @pytest.mark.parametrize("reason", ["TIME LIMIT", "PREEMPTION", "JOB REQUEUE"])
    def test_a_scheduler_that_ends_a_job_interrupts_it(self, reason: str) -> None:
        text = (
            f"slurmstepd: error: *** STEP 608.0 ON node-1 CANCELLED AT 2022-08-12T02:06:12 DUE TO {reason} ***\n"
            "srun: error: node-1: tasks 2-3: Exited with exit code 1\n"
        )
        verdict = judge_log([STEPS.encode(), text.encode()], 1)
        assert verdict.kind is Kind.INTERRUPTED
        assert reason in (verdict.root or "")

    def test_what_a_scheduler_does_after_a_task_failed_is_a_symptom(self) -> None:
        cancel = (
            "slurmstepd: error: *** STEP 608.0 ON node-1 CANCELLED AT 2022-08-12T02:06:12 ***\n"
        )
        assert judge_log([("ValueError: no\n" + cancel).encode()], 1).root == "ValueError: no"
        assert judge_log([(OOM + cancel).encode()], 1).kind is Kind.DEVICE_OOM

    def test_the_first_cause_of_a_chain_is_the_root(self) -> None:
        text = (
            OOM + "\nDuring handling of the above exception, another exception occurred:\n\n"
            "RuntimeError: training failed\n"
            "ray.exceptions.RayTaskError(RuntimeError): ray::train() (pid=1)\n"
        )
        assert (judge_log([text.encode()], 1).root or "").startswith("torch.OutOfMemoryError")


class TestUnknown:
    @pytest.mark.parametrize(
        ("text", "code", "command"),
        [
            ("", -9, "dmesg"),
            (STEPS, 137, "dmesg"),
            ("all is well\n", 7, "PYTHONFAULTHANDLER"),
            ("", None, "PYTHONFAULTHANDLER"),
            (
                "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n",
                1,
                "--log-dir",
            ),
        ],
    )
    def test_where_nothing_shows_what_happened_it_is_said_what_would(
        self, text: str, code: int | None, command: str
    ) -> None:
        verdict = judge_log([text.encode()], code)
        assert (verdict.kind, verdict.confidence) == (Kind.UNKNOWN, Confidence.LOW)
        assert command in (what_settles(verdict) or "")

    def test_what_is_known_needs_no_settling(self) -> None:
        assert what_settles(judge_log([OOM.encode()], 1)) is None
        assert what_settles(judge_log([b"ValueError: no\n"], 1)) is None

    def test_a_crash_is_another_failure(self) -> None:
        assert judge_log([STEPS.encode()], -11).root == "exited with code -11 (SIGSEGV)"
        assert judge_log([STEPS.encode()], 139).kind is Kind.NOT_OOM


def _at(*rows: str) -> Phase:
    """Return the phase of an OOM below these lines of a traceback."""
    text = "Traceback (most recent call last):\n" + "\n".join(rows) + f"\n{OOM}"
    return judge_log([text.encode()], 1).phase


@pytest.mark.parametrize(
    ("source", "phase"),
    [
        ("    metrics = self.evaluate(loader)", Phase.EVAL),
        ("    loss.mean().backward()", Phase.BACKWARD),
        ("    scaler.step(optimizer)", Phase.OPTIMIZER),
        ("    net = AutoModel.from_pretrained(path)", Phase.LOAD),
        ("    model.cuda()", Phase.LOAD),
        ("    torch.save(state, path)", Phase.SAVE),
        ("    dist.init_process_group('nccl')", Phase.LAUNCH),
        ("    out = self.model(**batch)", Phase.FORWARD),
        ("    x = x.to(device)", Phase.UNKNOWN),
        ("    def evaluate(model):", Phase.UNKNOWN),
    ],
)
def test_a_line_of_source_tells_where_its_frame_does_not(source: str, phase: Phase) -> None:
    assert _at('  File "run.py", line 9, in main', source) is phase


@pytest.mark.parametrize(
    "listing", ["----> 4 P.evaluate(\n      5   model=m)", "❱ 4 P.evaluate(x)"]
)
def test_of_a_listing_the_line_of_the_call_counts(listing: str) -> None:
    others = "      1 model = torch.load(path)\n      2 loss.backward()\n"
    assert _at("Cell In[58], line 4", f"{others}{listing}") is Phase.EVAL


def test_what_is_called_within_a_context_stays_in_it() -> None:
    outer = ('  File "run.py", line 3, in main', "    model.evaluate(x)")
    assert _at(*outer, '  File "m.py", line 3, in f', "    y = self.model(x)") is Phase.EVAL


@pytest.mark.parametrize(
    ("frame", "phase"),
    [
        ('File "/x/torch/utils/data/dataloader.py", line 480, in _try_get_batch', Phase.BATCH),
        ('File "/x/torch/utils/data/_utils/signal_handling.py", line 6, in handler', Phase.UNKNOWN),
        ('File "/x/my_dataset.py", line 4, in __getitem__', Phase.BATCH),
        ('File "/x/torch/nn/modules/container.py", line 4, in __getitem__', Phase.UNKNOWN),
        ('File "/x/data.py", line 4, in load_images', Phase.PREPROCESS),
        ('File "/x/store.py", line 4, in load_nda', Phase.UNKNOWN),
        ('File "/x/store.py", line 4, in load_ema_weights', Phase.LOAD),
        ('File "/x/gen.py", line 4, in prepare_data', Phase.PREPROCESS),
        ('File "/x/packed.py", line 4, in attn_varlen_func', Phase.FORWARD),
        ('File "/usr/lib/python3.11/json/__init__.py", line 293, in load', Phase.PREPROCESS),
        ('File "<frozen importlib._bootstrap>", line 688, in _load_unlocked', Phase.UNKNOWN),
        ('File "/x/keras/src/optimizers/base_optimizer.py", line 4, in apply_gradients', Phase.OPTIMIZER),
        ('File "/usr/lib/python3.11/subprocess.py", line 389, in call', Phase.UNKNOWN),
        ('File "/x/torch/distributed/distributed_c10d.py", line 9, in init_process_group', Phase.LAUNCH),
        ('File "/usr/lib/python3.11/argparse.py", line 9, in parse_args', Phase.LAUNCH),
    ],
)  # fmt: skip
def test_functions_of_data_and_of_startup_are_known_by_name(frame: str, phase: Phase) -> None:
    assert _at(f"  {frame}") is phase


def test_a_script_that_evaluates_does_so_in_its_forward_pass() -> None:
    frames = ('  File "eval_net.py", line 9, in <module>', '  File "n.py", line 3, in forward')
    assert _at(*frames) is Phase.EVAL
    assert _at(frames[0].replace("eval_net", "medieval"), frames[1]) is Phase.FORWARD


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("0/10 * Epoch (valid):   3% 1/32 [00:01<00:46, loss=1.656]", Phase.EVAL),
        ("Summoning checkpoint.", Phase.SAVE),
        ("Preparing test set...:  46%|###  | 31/67 [29:02<35:12, 58.67s/it]", Phase.PREPROCESS),
        ("0/10 * Epoch (train):   3% 1/32 [00:01<00:46, loss=1.656]", Phase.UNKNOWN),
    ],
)
def test_what_was_announced_last_is_the_phase(line: str, phase: Phase) -> None:
    assert judge_log([f"{line}\n{OOM}".encode()], 1).phase is phase


class TestUnifiedMemory:
    """Machines whose GPU shares the host's RAM: GB10, Jetson, and what NVML says there."""

    def test_an_allocator_that_cannot_ask_nvml_has_run_out(self) -> None:
        # pytorch/pytorch#112377 and #185240: a Jetson and a slice of an A100
        text = (
            'RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/'
            'CUDACachingAllocator.cpp":995, please report a bug to PyTorch.\n'
        )
        assert judge_log([text.encode()], 1).kind is Kind.DEVICE_OOM

    def test_another_use_of_nvml_that_fails_is_another_failure(self) -> None:
        text = 'RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "c10/cuda/PeerToPeerAccess.cpp":9\n'
        assert judge_log([text.encode()], 1).kind is Kind.NOT_OOM

    def test_the_drivers_notice_is_printed_by_runs_that_succeed_as_well(self) -> None:
        # vllm-project/vllm#56824: three healthy starts print it, the one that fails does not
        notice = (
            "[ 4021.110000] NVRM: nvCheckOkFailedNoLog: Check failed: Out of memory "
            "[NV_ERR_NO_MEMORY] (0x00000051) returned from _memdescAllocInternal @ mem_desc.c:1359\n"
        )
        assert judge_log([(notice + STEPS).encode()], 0).kind is Kind.OK
        assert judge_log([notice.encode()], 1).kind is Kind.UNKNOWN
        assert judge_log([(notice + OOM).encode()], 1).kind is Kind.DEVICE_OOM

    def test_a_jetsons_own_allocator_names_itself(self) -> None:
        text = "NvMapMemAllocInternalTagged: 1075072515 error 12\n"
        assert judge_log([text.encode()], 1).kind is Kind.DEVICE_OOM
