"""How the findings of several witnesses become one verdict."""

# ruff: noqa: E501 -- messages are quoted as they are printed
from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.evidence.case import TRAINED, is_shortage
from oomguard.evidence.judge import (
    EVIDENCE_AT_MOST,
    TEXT_CHARS,
    StoppedBy,
    judge,
    judge_log,
)
from oomguard.evidence.log import LogScanner
from oomguard.evidence.verdict import (
    Cause,
    Confidence,
    Finding,
    Kind,
    Phase,
    Verdict,
    Witness,
)

GIB = 1 << 30
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
STEPS = "".join(f"step {i} loss 2.5\n" for i in range(1, 6))
TORCHRUN_KILL = "failed (exitcode: -9) local_rank: 0 (pid: 8158) of binary: /usr/bin/python3\n"
INSIDE_OOM = Finding(
    witness=Witness.INSIDE, kind=Kind.DEVICE_OOM, text="CUDA out of memory. Tried to allocate 2.00 GiB",
    phase=Phase.BACKWARD, rank=1, step=7, requested_bytes=2 * GIB,
)  # fmt: skip
INSIDE_ERROR = Finding(
    witness=Witness.INSIDE, kind=Kind.NOT_OOM, text="ValueError: bad rows", rank=0
)
KERNEL_KILL = Finding(
    witness=Witness.KERNEL, kind=Kind.HOST_OOM, text="memory.events: oom_kill 0 -> 1"
)


def read(text: str) -> list[Finding]:
    scanner = LogScanner()
    return [*scanner.feed(text.encode()), *scanner.close()]


def test_what_the_process_itself_reports_is_sure() -> None:
    verdict = judge([*read(OOM), INSIDE_OOM], 1)
    assert (verdict.kind, verdict.confidence) == (Kind.DEVICE_OOM, Confidence.HIGH)
    assert (verdict.rank, verdict.step, verdict.phase) == (1, 7, Phase.BACKWARD)
    assert verdict.evidence[0] is INSIDE_OOM or verdict.evidence[0] == INSIDE_OOM


def test_the_kernel_comes_before_text() -> None:
    verdict = judge([*read(OOM), KERNEL_KILL], 1)
    assert (verdict.kind, verdict.root) == (Kind.HOST_OOM, KERNEL_KILL.text)


def test_an_own_error_reported_from_inside_comes_before_text_of_memory() -> None:
    verdict = judge([*read(OOM), INSIDE_ERROR], 1)
    assert (verdict.kind, verdict.root) == (Kind.NOT_OOM, "ValueError: bad rows")


def test_an_own_error_of_a_process_whose_child_the_kernel_killed_is_a_symptom() -> None:
    assert judge([KERNEL_KILL, INSIDE_ERROR], 1).kind is Kind.HOST_OOM


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "RuntimeError: worker failed: CUDA out of memory. Tried to allocate 2.00 GiB",
            Kind.DEVICE_OOM,
        ),
        ("DistBackendError: NCCL timeout", Kind.NOT_OOM),
    ],
)
def test_an_exception_is_read_by_its_words(text: str, kind: Kind) -> None:
    assert judge([replace(INSIDE_ERROR, text=text)], 1).kind is kind


@pytest.mark.parametrize(
    "text",
    [
        "CalledProcessError: Command '['torchrun']' returned non-zero exit status 1.",
        "ChildFailedError: train.py FAILED\n  rank      : 1 (local_rank: 1)\n  exitcode  : 1 (pid: 1670)",
        "ConnectionResetError: [Errno 104] Connection reset by peer",
    ],
)
def test_a_launcher_that_reports_from_inside_is_no_root(text: str) -> None:
    assert judge([*read(OOM), replace(INSIDE_ERROR, text=text)], 1).kind is Kind.DEVICE_OOM
    assert not is_shortage(replace(INSIDE_ERROR, text=text))


CONVERSION = "RuntimeError: We encountered some issues during automatic conversion of the weights. For details look at the `CONVERSION` entries of the above report!"


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 16777216 bytes.", Kind.HOST_OOM),
        (OOM.strip(), Kind.DEVICE_OOM),
        ("ValueError: Blocksize must be a power of two", Kind.NOT_OOM),
    ],
)  # fmt: skip
def test_weights_that_a_loader_could_not_convert_failed_of_what_it_printed(
    cause: str, kind: Kind
) -> None:
    log = (
        "Traceback (most recent call last):\n"
        f"{cause}\n"
        "Error: Bnb8bitQuantize on tensors destined for model.layers.9.mlp.up_proj.weight.\n"
        f"{CONVERSION}\n"
    )
    verdict = judge([*read(log), replace(INSIDE_ERROR, text=CONVERSION, phase=Phase.LOAD)], 1)
    assert verdict.kind is kind
    assert verdict.root == cause
    assert verdict.phase is Phase.LOAD


def test_a_loaders_worker_killed_under_a_watched_kernel_is_no_shortage() -> None:
    error = replace(INSIDE_ERROR, text="DataLoader worker (pid 41) is killed by signal: Killed. ")
    verdict = judge([error], 1, kernel_watched=True)
    assert (verdict.kind, verdict.root) == (Kind.NOT_OOM, error.text)
    assert judge([error, KERNEL_KILL], 1, kernel_watched=True).kind is Kind.HOST_OOM


def test_a_symptom_from_inside_does_not_hide_the_text_of_the_root() -> None:
    symptom = replace(INSIDE_ERROR, text="DistBackendError: NCCL communicator was aborted")
    assert judge([*read(OOM), symptom], 1).kind is Kind.DEVICE_OOM


def test_the_earliest_shortage_is_the_root() -> None:
    verdict = judge_log([b"std::bad_alloc\n", OOM.encode()], 1)
    assert (verdict.kind, verdict.evidence[0].line) == (Kind.HOST_OOM, 1)


def test_an_absurd_size_after_a_timeout_is_a_symptom() -> None:
    text = (
        "[rank3]:[E906 03:02:35 ProcessGroupNCCL.cpp:683] [Rank 3] Watchdog caught collective"
        " operation timeout: WorkNCCL(SeqNum=3)\n"
        "RuntimeError: CUDA out of memory. Tried to allocate more than 1EB memory.\n"
    )
    verdict = judge_log([text.encode()], 1)
    assert verdict.kind is Kind.NOT_OOM
    assert verdict.requested_bytes is None


class TestSigkill:
    @pytest.mark.parametrize("code", [-9, 137, 247])
    @pytest.mark.parametrize("watched", [True, False])
    def test_alone_it_proves_nothing(self, code: int, watched: bool) -> None:
        verdict = judge(read(STEPS), code, kernel_watched=watched)
        assert (verdict.kind, verdict.confidence) == (Kind.UNKNOWN, Confidence.LOW)
        assert verdict.root == "killed by SIGKILL; nothing shows that memory was the reason"

    def test_while_loading_text_alone_suspects_the_host(self) -> None:
        text = "Loading checkpoint shards:  50% 1/2 [00:49<00:49, 49.97s/it]" + TORCHRUN_KILL
        verdict = judge_log([text.encode()], 1)
        assert (verdict.kind, verdict.phase) == (Kind.HOST_OOM, Phase.LOAD)
        assert verdict.confidence is Confidence.LOW

    def test_the_kernel_that_counted_nothing_overrules_the_text(self) -> None:
        verdict = judge(
            read("Loading checkpoint shards: 50%\n" + TORCHRUN_KILL), 1, kernel_watched=True
        )
        assert verdict.kind is Kind.UNKNOWN
        assert "SIGKILL" in (verdict.root or "")

    def test_the_kernel_that_counted_one_makes_it_sure(self) -> None:
        verdict = judge([*read(TORCHRUN_KILL), KERNEL_KILL], 1, kernel_watched=True)
        assert (verdict.kind, verdict.confidence) == (Kind.HOST_OOM, Confidence.HIGH)

    def test_in_the_middle_of_training_text_suspects_nobody(self) -> None:
        assert judge_log([STEPS.encode(), TORCHRUN_KILL.encode()], 1).kind is Kind.UNKNOWN

    def test_a_launcher_that_hides_it_behind_zero_is_not_believed(self) -> None:
        text = "process 811 exits with return code = -9\n"
        assert judge_log([STEPS.encode(), text.encode()], 0).kind is Kind.UNKNOWN

    def test_another_rank_with_an_error_of_its_own_explains_it(self) -> None:
        verdict = judge_log([b"[rank1]: ValueError: bad rows\n", TORCHRUN_KILL.encode()], 1)
        assert (verdict.kind, verdict.root) == (Kind.NOT_OOM, "ValueError: bad rows")

    def test_the_launcher_of_deepspeed_quotes_the_whole_command(self) -> None:
        text = (
            "[2023-04-07 13:09:33,201] [INFO] [launch.py:318:sigkill_handler] Killing subprocess 80\n"
            "[2023-04-07 13:09:33,220] [ERROR] [launch.py:324:sigkill_handler] ['/usr/bin/python3', '-u',"
            " 'run_clm.py', '--local_rank=0', '--deepspeed', 'ds.json'] exits with return code = -9\n"
        )
        assert judge_log([text.encode()]).kind is Kind.HOST_OOM
        assert judge(read(text), 247, kernel_watched=True).kind is Kind.UNKNOWN


class TestCaught:
    def test_training_that_goes_on_shows_that_it_was_caught(self) -> None:
        verdict = judge_log([(OOM + STEPS).encode()], 0)
        assert (verdict.kind, verdict.requested_bytes) == (Kind.OK, 2 * GIB)

    def test_one_more_step_shows_nothing(self) -> None:
        assert judge_log([(OOM + "step 9 loss 2.5\n").encode()], 1).kind is Kind.DEVICE_OOM

    def test_other_ranks_that_go_on_show_nothing(self) -> None:
        steps = "".join("[rank0]: " + line + "\n" for line in STEPS.splitlines())
        assert judge_log([("[rank1]: " + OOM + steps).encode()], 1).kind is Kind.DEVICE_OOM

    def test_a_second_one_that_is_not_caught_is_the_root(self) -> None:
        verdict = judge_log([(OOM + STEPS + OOM.replace("2.00", "4.00")).encode()], 1)
        assert (verdict.kind, verdict.requested_bytes) == (Kind.DEVICE_OOM, 4 * GIB)

    def test_another_failure_after_it_is_the_root(self) -> None:
        verdict = judge_log([(OOM + STEPS + "ValueError: bad rows\n").encode()], 1)
        assert (verdict.kind, verdict.root) == (Kind.NOT_OOM, "ValueError: bad rows")

    def test_the_process_says_so(self) -> None:
        handled = replace(INSIDE_OOM, handled=True)
        assert judge([*read(OOM), handled], 0).kind is Kind.OK
        assert judge([*read(OOM), handled, INSIDE_ERROR], 1).kind is Kind.NOT_OOM

    def test_a_handler_that_speaks_first_is_heard_at_once(self) -> None:
        (_, found) = LogScanner().feed(
            b"| WARNING: attempting to recover from OOM in forward/backward pass\n"
            b"| OOM: Ran out of memory with exception: CUDA out of memory. Tried to allocate 62.00 MiB"
            b" (GPU 0; 15.90 GiB total capacity)\n"
        )
        assert found.handled
        assert not is_shortage(found)
        assert is_shortage(replace(found, handled=False))

    def test_the_end_of_another_rank_shows_nothing(self) -> None:
        text = "[rank1]: " + OOM + "{'train_runtime': 12.5}\n"
        assert judge_log([text.encode()], 1).kind is Kind.DEVICE_OOM

    def test_running_out_of_batch_sizes_is_a_shortage(self) -> None:
        text = "Decreasing batch size to: 1.\nRuntimeError: No executable batch size found, reached zero.\n"
        assert judge_log([text.encode()], 1).kind is Kind.DEVICE_OOM


class TestEnds:
    def test_zero_is_success(self) -> None:
        assert judge([], 0).kind is Kind.OK

    @pytest.mark.parametrize(
        "found", [KERNEL_KILL, INSIDE_OOM, replace(INSIDE_OOM, helper=True)], ids=str
    )
    def test_zero_hides_what_a_process_or_the_kernel_reports(self, found: Finding) -> None:
        assert judge([found], 0).kind is found.kind
        trained = replace(INSIDE_OOM, kind=Kind.OK, signature=TRAINED, rank=found.rank)
        verdict = judge([found, trained], 0)
        assert (verdict.kind, verdict.evidence[0]) == (Kind.OK, found)
        other = replace(trained, rank=0)
        assert judge([found, other], 0).kind is found.kind

    def test_zero_is_believed_when_a_helper_ran_out_and_steps_followed(self) -> None:
        helper = replace(INSIDE_OOM, helper=True)
        assert judge([*read(OOM + "step 9 loss 2.5\n"), helper], 0).kind is Kind.OK
        assert judge([*read("step 9 loss 2.5\n" + OOM), helper], 0).kind is Kind.DEVICE_OOM

    @pytest.mark.parametrize(
        "log",
        [
            "sample answer: 'RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB'\n",
            "Exception ignored in: <function X.__del__ at 0x7f>\nTraceback (most recent call last):\n" + OOM,
            "Exception ignored in atexit callback: <function <lambda> at 0x7f>\n" + OOM,
            "Traceback (most recent call last):\n" + OOM,
        ],
    )  # fmt: skip
    def test_zero_outweighs_text(self, log: str) -> None:
        verdict = judge_log([(STEPS + log).encode()], 0)
        assert verdict.kind is Kind.OK
        assert any(f.kind is Kind.DEVICE_OOM for f in verdict.evidence)
        assert judge_log([(STEPS + log).encode(), b"ChildFailedError: \n"], 0).kind is not Kind.OK
        assert judge_log([(STEPS + OOM).encode()], 1).kind is Kind.DEVICE_OOM

    def test_what_is_raised_after_the_training_loop_returned_is_no_failure_of_zero(self) -> None:
        trained = replace(INSIDE_OOM, kind=Kind.OK, signature=TRAINED, rank=0)
        assert judge([trained, INSIDE_ERROR], 0).kind is Kind.OK
        assert judge([trained, INSIDE_ERROR], 1).kind is Kind.NOT_OOM

    def test_the_error_of_a_rank_comes_before_the_shortage_of_a_helper(self) -> None:
        helper = replace(INSIDE_OOM, helper=True)
        assert judge([helper], 1).kind is Kind.DEVICE_OOM
        assert judge([helper, INSIDE_ERROR], 1).root == INSIDE_ERROR.text
        failed = replace(INSIDE_ERROR, helper=True)
        assert judge([*read(OOM), failed], 1).kind is Kind.DEVICE_OOM

    def test_a_shortage_after_the_end_of_training_counts(self) -> None:
        text = "{'train_runtime': 12.5}\n" + OOM
        assert judge_log([text.encode()], 1).kind is Kind.DEVICE_OOM

    def test_noise_after_the_end_of_training_does_not(self) -> None:
        text = "{'train_runtime': 12.5}\nRuntimeError: DataLoader worker (pid 3) is killed by signal: Killed.\n"
        assert judge_log([text.encode()], 0).kind is Kind.OK
        assert judge_log([text.encode()]).kind is Kind.OK

    def test_the_jobs_own_last_error_stands_below_the_launchers(self) -> None:
        text = (
            "Traceback (most recent call last):\n"
            '  File "train.py", line 9, in main\n'
            "KeyError: 'labels'\n"
            "ConnectionResetError: [Errno 104] Connection reset by peer\n"
            "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n"
            "subprocess.CalledProcessError: Command '['torchrun']' returned non-zero exit status 1.\n"
        )
        assert judge_log([text.encode()], 1).root == "KeyError: 'labels'"

    @pytest.mark.parametrize(
        "text",
        [
            "train.py: error: unrecognized arguments: --lerning_rate",
            "error: Parser key train.lr does not exist",
            "ModuleNotFoundError: No module named 'deepspeed'",
        ],
    )
    def test_an_error_of_usage_is_shown_as_the_job_put_it(self, text: str) -> None:
        assert judge_log([f"usage: train.py [-h]\n{text}\n".encode()], 2).root == text

    def test_a_failure_after_the_end_of_training_is_one(self) -> None:
        text = "{'train_runtime': 12.5}\nPermissionError: [Errno 13] Permission denied: 'out'\n"
        assert judge_log([text.encode()]).kind is Kind.NOT_OOM

    def test_ctrl_c_in_the_terminal(self) -> None:
        assert judge_log([b"KeyboardInterrupt\n"], 130).kind is Kind.INTERRUPTED
        assert judge_log([b"KeyboardInterrupt\n"]).kind is Kind.NOT_OOM

    def test_the_user_interrupts(self) -> None:
        verdict = judge(read(OOM), -2, stopped_by=StoppedBy.USER)
        assert (verdict.kind, verdict.confidence) == (Kind.INTERRUPTED, Confidence.HIGH)

    def test_a_stop_by_oomguard_leaves_the_evidence_to_speak(self) -> None:
        assert judge([INSIDE_OOM], -15, stopped_by=StoppedBy.OOMGUARD).kind is Kind.DEVICE_OOM
        verdict = judge([], -15, stopped_by=StoppedBy.OOMGUARD)
        assert (verdict.kind, verdict.root) == (Kind.NOT_OOM, "stopped by oomguard")

    def test_an_empty_log_shows_nothing(self) -> None:
        verdict = judge_log([], None)
        assert (verdict.kind, verdict.confidence) == (Kind.UNKNOWN, Confidence.LOW)

    def test_a_masked_message_alone_proves_nothing(self) -> None:
        text = b"RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`\n"
        assert judge_log([text], 1).kind is Kind.NOT_OOM
        assert judge_log([text, OOM.encode()], 1).kind is Kind.DEVICE_OOM


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([sys.executable, "no_such_file.py"], "No such file or directory"),
        ([sys.executable, "-m", "no_such_module"], "No module named no_such_module"),
        (["bash", "-c", "no_such_command"], "no_such_command: command not found"),
        (["bash", "-c", "cat /no/such/file"], "/no/such/file: No such file or directory"),
        ([sys.executable, "-c", "import argparse; argparse.ArgumentParser().parse_args(['--x'])"], "error: unrecognized arguments: --x"),
        ([sys.executable, "-c", "import sys; sys.exit('dataset_dir must be set')"], "dataset_dir must be set"),
        ([sys.executable, "-c", "print('step 3 loss 2.5'); exit('bad batch')"], "bad batch"),
    ],
)  # fmt: skip
def test_the_root_quotes_what_a_job_printed_last(argv: list[str], message: str) -> None:
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60
    )
    verdict = judge_log([done.stdout], done.returncode)
    assert verdict.kind.is_other_failure
    assert message in (verdict.root or "")
    assert message in verdict.evidence[0].text


def test_only_an_empty_log_names_no_error() -> None:
    assert judge_log([], 7).root == "exited with code 7; no error recognised in log.txt"
    assert judge_log([b"all is well\n"], 7).root == "exited with code 7; last output: all is well"


@pytest.mark.parametrize(
    ("log", "code", "kind"),
    [
        (
            b"python: can't open file '/w/x.py': [Errno 2] No such file or directory\n",
            2,
            Kind.NOT_OOM,
        ),
        (b"train.sh: line 3: llamafactory-cli: command not found\n", 127, Kind.NOT_OOM),
        (b"sh: 1: ./train.py: Permission denied\n", 126, Kind.NOT_OOM),
        (
            b"train.sh: line 1: nvidia-smi: command not found\n" + b"loading\n" * 9,
            137,
            Kind.UNKNOWN,
        ),
    ],
)
def test_a_program_that_did_not_start_is_no_memory_failure(
    log: bytes, code: int, kind: Kind
) -> None:
    assert judge_log([log], code).kind is kind


@pytest.mark.parametrize(
    ("log", "offered"),
    [
        ("no such dataset", "no such dataset"),
        ("no such dataset\ntcmalloc: large alloc 1073741824 bytes", "no such dataset"),
        ("no such dataset\n{'train_runtime': 2.5}", "no such dataset"),
        ("no such dataset\n 50%|#####     | 5/10 [00:01<00:01]", "no such dataset"),
        ("no such dataset\nstep 7 loss 2.0", "no such dataset"),
        ("tcmalloc: large alloc 1073741824 bytes\nno such dataset", "no such dataset"),
        ("tcmalloc: large alloc 1073741824 bytes", None),
        ("{'train_runtime': 2.5}", None),
        ("step 7 loss 2.0", None),
    ],
)
def test_the_last_output_offered_is_never_a_routine_line(log: str, offered: str | None) -> None:
    reason = f"last output: {offered}" if offered else "no error recognised in log.txt"
    assert judge_log([log.encode()], 7).root == f"exited with code 7; {reason}"


PINNED = 'File "torch/utils/data/_utils/pin_memory.py", line 50, in pin_memory\nRuntimeError: CUDA error: out of memory\n'


def test_pinning_host_memory_prints_the_words_of_the_device() -> None:
    assert judge_log([PINNED.encode()], 1).kind is Kind.PINNED_OOM
    assert judge_log([PINNED.replace("pin_memory", "forward").encode()], 1).kind is Kind.DEVICE_OOM


def test_a_progress_bar_may_stand_before_the_traceback_and_the_message() -> None:
    text = (
        "  Total optimization steps = 352\n"
        "  3%|3         | 9/352 [40:55<25:10:16, 264.19s/it][rank1]: Traceback (most recent call last):\n"
        '[rank1]:   File "transformers/trainer.py", line 1, in training_step\n'
        '[rank1]:   File "torch/autograd/graph.py", line 744, in _engine_run_backward\n'
        "[rank1]:     return Variable._execution_engine.run_backward(  # Calls into the C++ engine\n"
        "[rank1]: " + OOM
    )
    verdict = judge_log([text.encode()], 1)
    assert (verdict.phase, verdict.rank, verdict.step) == (Phase.BACKWARD, 1, 9)
    glued = (
        "Steps:  50%|##| 1/2 [01:17<01:17, 77.90s/it, loss=0.0858] Exception while training: " + OOM
    )
    assert judge_log([glued.encode()], 1).kind is Kind.DEVICE_OOM


def test_a_driver_that_cannot_see_the_own_process_does_not_blame_another() -> None:
    text = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 270.00 MiB. GPU 5 has a total"
        " capacity of 23.65 GiB of which 208.06 MiB is free. Process 2271800 has 23.44 GiB memory in"
        " use. Of the allocated memory 22.87 GiB is allocated by PyTorch, and 6.23 MiB is reserved by"
        " PyTorch but unallocated.\n"
    )
    assert judge_log([text.encode()], 1).cause is Cause.CAPACITY


def traceback(*frames: str) -> str:
    lines = "".join(
        f'  File "{frame.split(":")[0]}", line 1, in {frame.split(":")[1]}\n' for frame in frames
    )
    return "Traceback (most recent call last):\n" + lines + OOM


@pytest.mark.parametrize(
    ("frames", "phase"),
    [
        (("t/trainer.py:training_step", "torch/nn/modules/linear.py:forward"), Phase.FORWARD),
        (("t/trainer.py:training_step", "torch/_tensor.py:backward", "torch/utils/checkpoint.py:recompute", "m.py:forward"), Phase.BACKWARD),
        (("torch/optim/adamw.py:step", "l/precision.py:_wrap_closure", "m.py:forward"), Phase.FORWARD),
        (("t/trainer.py:_inner_training_loop", "torch/optim/adamw.py:step", "torch/optim/adamw.py:_init_group"), Phase.OPTIMIZER),
        (("t/trainer.py:evaluate", "t/trainer.py:evaluation_loop", "t/trainer.py:prediction_step", "t/trainer.py:compute_loss", "m.py:forward"), Phase.EVAL),
        (("t/trainer.py:_save_checkpoint", "torch/serialization.py:save"), Phase.SAVE),
        (("t/modeling_utils.py:from_pretrained", "t/modeling_utils.py:_load_state_dict_into_meta_model"), Phase.LOAD),
        (("torch/nn/modules/module.py:to", "torch/nn/modules/module.py:_apply"), Phase.LOAD),
        (("l/data/loader.py:get_dataset", "datasets/arrow_dataset.py:map"), Phase.PREPROCESS),
        (("main.py:main",), Phase.UNKNOWN),
    ],
)  # fmt: skip
def test_the_innermost_telling_frame_names_the_phase(frames: tuple[str, ...], phase: Phase) -> None:
    assert judge_log([traceback(*frames).encode()], 1).phase is phase


LOGGED = {
    "enomem": Kind.HOST_OOM,
    "torchrun-sigkill": Kind.HOST_OOM,
    "caught": Kind.OK,
    "python-exception": Kind.NOT_OOM,
    "cuda-libraries-masked": Kind.DEVICE_OOM,
}


def as_the_scanner_gives_it(finding: Finding, signature: str) -> Finding:
    if finding.witness is not Witness.LOG:
        return finding
    return replace(finding, signature=signature, kind=LOGGED[signature], line=finding.line or 1)


findings = st.lists(
    st.builds(
        as_the_scanner_gives_it,
        st.builds(
            Finding,
            witness=st.sampled_from(Witness), kind=st.sampled_from(Kind), text=st.text(max_size=600),
            line=st.none() | st.integers(1, 99), handled=st.booleans(),
            cause=st.sampled_from(Cause),
        ),
        st.sampled_from(sorted(LOGGED)),
    ),
    max_size=40,
)  # fmt: skip


@given(findings, st.sampled_from([None, 0, 1, -9, -11, 130]), st.booleans())
def test_any_findings_give_a_bounded_verdict(
    found: list[Finding], code: int | None, watched: bool
) -> None:
    verdict: Verdict = judge(found, code, kernel_watched=watched)
    assert len(verdict.evidence) <= EVIDENCE_AT_MOST
    assert all(len(f.text) <= TEXT_CHARS for f in verdict.evidence)
    assert len(verdict.root or "") <= TEXT_CHARS


@given(findings, st.sampled_from([None, 0, 1, -9]))
def test_a_verdict_of_memory_rests_on_a_finding_of_memory(
    found: list[Finding], code: int | None
) -> None:
    verdict = judge(found, code)
    if verdict.kind.is_memory:
        assert verdict.evidence[0].kind is verdict.kind
