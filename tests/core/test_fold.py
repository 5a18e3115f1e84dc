"""Tracebacks that were printed before are shortened on a terminal; all else stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.cli.fold import TracebackFold

FRAMES = "".join(
    f'  File "/env/torch/nn/module.py", line {100 + n}, in forward\n    return super().forward(x)\n'
    for n in range(20)
)
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {} GiB.\n"
HEADER = "Traceback (most recent call last):\n"


def traceback(size: int, rank: str = "") -> str:
    lines = (HEADER + FRAMES + OOM.format(size)).splitlines(keepends=True)
    return "".join(rank + line for line in lines)


def printed(*texts: str) -> str:
    fold = TracebackFold()
    out = b"".join(fold.feed(text.encode()) for text in texts)
    return (out + fold.close()).decode()


def test_the_same_traceback_of_a_later_attempt_has_its_first_and_last_line() -> None:
    out = printed("loading\n", traceback(2), "again\n", traceback(1), "end\n")
    inner = "  ... 40 lines as before; the log has them, --verbose prints them\n"
    short = HEADER + inner + OOM.format(1)
    assert out == f"loading\n{traceback(2)}again\n{short}end\n"


def test_ranks_print_the_same_traceback_once() -> None:
    out = printed(traceback(2, "[rank0]: "), traceback(2, "[rank1]: "))
    assert out.startswith(traceback(2, "[rank0]: "))
    assert out.count("File ") == 20
    assert out.endswith(f"[rank1]: {OOM.format(2)}")
    assert "[rank1]:   ... 40 lines as before" in out


def test_another_traceback_is_whole() -> None:
    other = traceback(2).replace("forward", "backward")
    assert printed(traceback(2), other) == traceback(2) + other


def test_short_ones_are_whole() -> None:
    short = f'{HEADER}  File "a.py", line 1, in <module>\n    x\nValueError: x\n'
    assert printed(short, short) == short + short


def test_what_another_rank_says_in_between_is_not_lost() -> None:
    lines = traceback(2, "[rank0]: ").splitlines(keepends=True)
    mixed = "".join([*lines[:9], "[rank1]: hello\n", *lines[9:]])
    assert printed(traceback(2, "[rank0]: "), mixed) == traceback(2, "[rank0]: ") + mixed


def test_a_job_that_dies_inside_a_traceback_has_all_of_it_printed() -> None:
    assert printed(traceback(2), traceback(2)[:300]) == traceback(2) + traceback(2)[:300]


@pytest.mark.parametrize(
    "text", ["step 1/9\r", "loss 0.1", "Train", "[INFO] x", "Traceback? no", "[rank1]: step 3"]
)
def test_progress_is_not_held_back(text: str) -> None:
    assert TracebackFold().feed(text.encode()) == text.encode()


LINES = st.sampled_from(
    ["", "a\n", "Traceback", "  File x\n", "[rank0]: ", "\r50%", traceback(2), traceback(3),
     HEADER, "ValueError: x\n", "    code\n", "\n"]
)  # fmt: skip


@given(st.lists(LINES, max_size=12), st.data())
def test_how_output_is_cut_into_pieces_changes_nothing(parts: list[str], data: st.DataObject):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert printed(*pieces) == printed(text)


@given(st.lists(LINES, max_size=12))
def test_only_whole_tracebacks_are_shortened(parts: list[str]):
    text = "".join(parts)
    out = printed(text)
    if text.count(HEADER) < 2:
        assert out == text
    assert len(out) <= len(text)
