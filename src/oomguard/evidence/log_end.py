"""What the last lines of a log show: the last step, what was announced, a traceback that is cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

from oomguard.evidence.frames import frame_at, traceback_before
from oomguard.evidence.job_phase import announced
from oomguard.evidence.log_lines import read_lines
from oomguard.evidence.match import match_line
from oomguard.evidence.message import (
    PROGRESS,
    announced_before,
    last_announced,
    last_frame,
    last_output,
    progress,
)
from oomguard.evidence.progress import BAR, step_of, totals_of
from oomguard.evidence.signatures import BY_ID
from oomguard.evidence.verdict import Finding, Phase

CONTEXT_LINES = 400
_EXCEPTION, _LAST_LINES = BY_ID["python-exception"].pattern, 5


def end_shows(
    before: bytes, line_number: int, totals: deque[int], *, explained: bool
) -> Iterator[Finding]:
    """Yield the last training step, the last announcement, the last frame of a cut traceback.

    Where there is no such traceback and no finding `explained` anything, the last line that is not
    routine. `before` is the end of the log, whose last line has `line_number`.
    """
    first = line_number - before.count(b"\n")
    rows = enumerate(before.split(b"\n"), first)
    numbered = [(number, line) for number, row in rows for line in read_lines(row)]
    numbered = numbered[-CONTEXT_LINES:]
    totals.extend(totals_of(line for _, line in numbered))
    for number, line in reversed(numbered):
        if (step := step_of(line.text, totals)) is not None:
            yield progress(PROGRESS, line, step, number, handled=False)
            break
    lines = [line for _, line in numbered]
    phase = announced_before(lines, None, totals)
    if phase is not Phase.UNKNOWN:
        number, line = next(x for x in reversed(numbered) if announced([x[1].text]) is phase)
        yield last_announced(phase, line, number)
    frames = traceback_before(lines, None).frames
    if frames and not any(_EXCEPTION.match(line.text) for line in lines[-_LAST_LINES:]):
        last = next(i for i in range(len(lines) - 1, -1, -1) if frame_at(lines, i))
        number, line = numbered[last]
        yield last_frame(lines, line, number)
    elif not explained:
        said = next((x for x in reversed(numbered) if not _is_routine(x[1].text, totals)), None)
        if said:
            yield last_output(said[1], said[0])


def _is_routine(text: str, totals: Collection[int]) -> bool:
    """Return whether a line is progress or a harmless notice, which explains no failure."""
    shows_progress = BAR.search(text) or step_of(text, totals) is not None
    return bool(shows_progress) or match_line(text) is not None
