"""The first and the last loss of a log, however its chunks are cut."""

from __future__ import annotations

import pytest

from oomguard.run.printed_loss import LINE_BYTES, LossEnds, LossReader

LOG = b"start\n{'loss': 3.0, 'epoch': 0.1}\r\n{'loss': '2.0', 'epoch': '0.2'}\nx\n"
LOG += b"{'eval_loss': 9.0, 'epoch': 0.2}\n{'loss': 1.0, 'epoch': 0.3}"
ENDS = LossEnds(unit="epoch", first_at=0.1, first=3.0, last_at=0.3, last=1.0)


@pytest.mark.parametrize("size", [1, 7, 40, len(LOG)])
def test_chunks_may_end_anywhere(size):
    reader = LossReader()
    for at in range(0, len(LOG), size):
        reader.feed(LOG[at : at + size])
    assert reader.close() == ENDS


def test_a_log_without_a_loss_has_none():
    reader = LossReader()
    reader.feed(b"loss is nan\n{'loss': nan, 'epoch': 1}\n")
    assert reader.close() is None


def test_a_line_without_end_is_not_kept_whole():
    reader = LossReader()
    for _ in range(100):
        reader.feed(b"." * LINE_BYTES)
    reader.feed(b" {'loss': 1.0, 'epoch': 0.3}\n")
    assert reader.close() == LossEnds(unit="epoch", first_at=0.3, first=1.0, last_at=0.3, last=1.0)
