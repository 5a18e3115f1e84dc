"""The monitor's table of OOM messages, which has to stand alone, agrees with that for logs."""

# ruff: noqa: E501  messages are quoted as they are printed
from __future__ import annotations

import re
import sys

import pytest

from core.test_evidence_strings import NOT_SHORTAGES, SHORTAGES
from oomguard import monitor
from oomguard.evidence.judge import judge_log
from oomguard.evidence.verdict import Kind

sys.path.append(str(monitor.PATH))
from oomguard_monitor import oom

#: A whole message for each text that is only a part of one.
WHOLE = {
    "[Errno 12]": "OSError: [Errno 12] Cannot allocate memory",
    "unable to allocate shared memory(shm)": "RuntimeError: unable to allocate shared memory(shm) for file </torch_8_1_0>: No space left on device (28)",
    "caused by insufficient shared memory (shm)": "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).",
    "is killed by signal: Bus error": "RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory.",
    "out of device memory on current platform": "RuntimeError: Allocation is out of device memory on current platform.",
    "Ran out of memory in memory space": "XlaRuntimeError: RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.90G of 7.48G hbm.",
    "PT_DEVMEM Allocation failed": "RuntimeError: [Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::268435456 (256)MB",
    "RESOURCE_EXHAUSTED: XLA:TPU": "XlaRuntimeError: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.",
    "No executable batch size found": "RuntimeError: No executable batch size found, reached zero.",
}
KINDS = {"cuda": {Kind.DEVICE_OOM}, "cpu": {Kind.HOST_OOM, Kind.SHM_OOM}, None: {Kind.DEVICE_OOM}}
RAISED = re.compile(r"(?:[\w.]+\.)?(\w*(?:Error|Exception|OutOfResources))(?:: (.*))?")
#: Messages of exceptions that the log's table alone recognizes: other frameworks, and limits whose
#: kind the text around them decides.
LOG_ONLY = (
    "OOM when allocating tensor",
    "The paging file is too small",
    "No space left on device",
    "cudaHostAlloc failed",
)


def exception(text: str) -> Exception | None:
    """Return what raised a line of a traceback, None if no Python exception did."""
    match = RAISED.fullmatch(text)
    if match is None or text.startswith("java."):
        return None
    is_memory = match[1].endswith("MemoryError") and match[1] != "SharedMemoryError"
    base = MemoryError if is_memory else Exception
    return type(match[1], (base,), {})(match[2] or "")


@pytest.mark.parametrize(("text", "device"), oom._TEXTS)
def test_every_text_of_the_monitor_is_an_oom_in_a_log(text: str, device: str | None) -> None:
    message = WHOLE.get(text, f"RuntimeError: {text}")
    assert text in message
    assert judge_log([message.encode() + b"\n"], 1).kind in KINDS[device]


@pytest.mark.parametrize("text", [text for text, *_ in SHORTAGES if exception(text)])
def test_every_exception_that_is_an_oom_in_a_log_is_one_for_the_monitor(text: str) -> None:
    known = not any(part in text for part in LOG_ONLY)
    assert (oom.find(exception(text)) is not None) is known


@pytest.mark.parametrize("text", [text for text in NOT_SHORTAGES if exception(text)])
def test_no_exception_that_is_not_an_oom_in_a_log_is_one_for_the_monitor(text: str) -> None:
    assert oom.find(exception(text)) is None


def test_a_limit_on_locked_memory_is_not_an_oom() -> None:
    text = "NCCL error: Call to ibv_reg_mr failed with error Cannot allocate memory"
    assert oom.find(RuntimeError(text)) is None


def test_every_whole_message_is_of_a_text_that_is_still_there() -> None:
    assert WHOLE.keys() <= {text for text, _ in oom._TEXTS}
