"""Reads tracebacks in each dialect that a log holds them in, and what memory they were moving."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from oomguard.evidence.log_lines import Line

_PATH = r"(?:[A-Za-z]:)?[^\s\":()│]*"
_CELL = r"^\s*(?:Cell|Input) (?P<file>In ?\[\d+\])(?:, line \d+)?(?:, in (?P<name>[\w.<>]+))?"
#: How a frame is printed: CPython, IPython 7 and 8, rich and shortened forms, C++, gdb, Node.
_FRAMES = tuple(
    re.compile(pattern)
    for pattern in (
        r'(?:^|[\s\]:|>*`])File "(?P<file>[^"]*)", line \d+, in (?P<name>[^\s(]+)',
        rf"^\s*(?:File )?(?P<file>{_PATH}\.(?:py|pyx|pxi)) in (?P<name>[\w.<>]+)\(",
        rf"^\s*\[(?P<file>{_PATH}\.py)\]\([^()]*\) in (?P<name>[\w.<>]+)\(",  # Colab
        rf"^\s*File (?P<file>{_PATH}\.(?:py|pyx|pxi)|<[^>]+>):\d+, in (?P<name>[\w.<>]+)",
        rf"^\s*(?P<file>{_PATH}\.(?:py|pyx|pxi)):\d+ in (?P<name>[\w.<>]+)\s*$",
        r"^\s*(?P<file><ipython-input-[^>]*>) in (?P<name>[\w.<>]+)",
        _CELL,
        r"^\s*frame #\d+: (?P<name>[\w:~<>, ]+?)\(.* in (?P<file>[^\s)]+)\)",
        r"^\s*frame #\d+: (?P<name>[\w:~]+).*?\((?:\S+ in )?(?P<file>[^\s)]+)\)",
        r"^\s*#\d+ +(?:0x[0-9a-f]+ in )?(?P<name>[\w:~]+) ?\(.*\)(?: (?:from|at) (?P<file>\S+))?",
        r"^\s+at (?P<name>[\w.<>$ \[\]]+) \((?P<file>[^()]+):\d+:\d+\)",
    )
)
_BEGIN = "Traceback (most recent call last)"
#: The first words of a frame whose end a terminal has put on the next line.
_CUT = re.compile(r'^\s*File "|^\s*(?:/|[A-Za-z]:\\)\S+$')
_LINE_CHARS = 1000
_STRAY_LINES = 12  # of source, carets or another process between two frames
_ARROW = re.compile(r"^\s*-{2,}> ?\d+ |^\s*❱ ?\d+ |^\s*-{3,}> ?\d+$")
#: The source of notebooks and rich stands with its line numbers, many lines for each frame.
_NUMBERED = re.compile(r"^\s*(?:-*>|❱)?\s*\d+ |^\s*\d+$")
#: Frames and source lines that move memory to the host or pin it there.
_PINNING = re.compile(
    r"(?i)pin_memory|pinned|offload\w*_(?:to_)?cpu|host_?register|host_?alloc|page_?lock"
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A place in the code, as far as the log names it."""

    file: str
    name: str


@dataclass(frozen=True, slots=True)
class Traceback:
    """The frames (outermost first) and the source lines that stand before an error."""

    frames: tuple[Frame, ...]
    source: tuple[str, ...]

    @property
    def pins_memory(self) -> bool:
        """Return whether its innermost frames move memory to the host or pin it there."""
        return any(_PINNING.search(frame.name) for frame in self.frames[-2:]) or any(
            _PINNING.search(text) for text in self.source[-2:]
        )


def frame_of(text: str) -> Frame | None:
    """Return the frame that a line names; None for any other line."""
    text = text[:_LINE_CHARS]
    if "File" not in text and "in " not in text and "#" not in text and " at " not in text:
        return None if "In" not in text else _notebook_cell(text)
    match = next((m for pattern in _FRAMES if (m := pattern.search(text))), None)
    if match is None:
        return None
    return Frame((match["file"] or "").replace("\\", "/"), (match["name"] or "<module>").strip())


def _notebook_cell(text: str) -> Frame | None:
    match = re.search(_CELL, text)
    return Frame(match["file"], match["name"] or "<module>") if match else None


def frame_at(lines: Sequence[Line], place: int) -> Frame | None:
    """Return the frame that begins at a line, joined with the next where a terminal broke it."""
    text = lines[place].text
    frame = frame_of(text)
    if frame is not None or not _CUT.match(text):
        return frame
    for further in lines[place + 1 : place + 3]:
        for joined in (
            text.rstrip() + further.text.strip(),
            text.rstrip() + " " + further.text.strip(),
        ):
            frame = frame_of(joined)
            if frame is not None:
                return frame
        text = text.rstrip() + further.text.strip()
    return None


def traceback_before(lines: Sequence[Line], rank: int | None) -> Traceback:
    """Collect the traceback that ends with the last of these lines, other ranks' lines left out."""
    own = _own(lines, rank)
    frames: list[Frame] = []
    source: list[str] = []
    stray = 0
    for place in range(len(own) - 1, -1, -1):
        text = own[place].text
        frame = frame_at(own, place)
        if frame is not None:
            frames.append(frame)
            stray = 0
        elif _BEGIN in text or stray >= _STRAY_LINES:
            break
        else:
            listed = _NUMBERED.match(text)
            stray += not listed
            # Of a listing, the line of the call counts; else the code and its carets.
            shown = _ARROW.match(text) if listed else frames or stray <= 2  # noqa: PLR2004
            source += [text] if shown else []
    return Traceback(tuple(reversed(frames)), tuple(reversed(source)))


def traceback_after(lines: Sequence[Line], rank: int | None) -> Traceback:
    """Collect the traceback that begins with the first of these lines."""
    own = _own(lines, rank)
    frames: list[Frame] = []
    source: list[str] = []
    stray = 0
    for place, line in enumerate(own):
        frame = frame_at(own, place)
        if frame is not None:
            frames.append(frame)
            stray = 0
        elif stray >= _STRAY_LINES:
            break
        else:
            stray += not _NUMBERED.match(line.text)
            source += [line.text] if frames and _ARROW.match(line.text) else []
    return Traceback(tuple(frames), tuple(source))


def _own(lines: Sequence[Line], rank: int | None) -> list[Line]:
    """Return the lines of one rank; those that no launcher marked may be anybody's."""
    return [line for line in lines if rank is None or line.rank in (None, rank)]
