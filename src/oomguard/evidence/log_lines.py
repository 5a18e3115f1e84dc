"""Turns the bytes of a log into the lines that its programs printed.

Launchers, schedulers, loggers, notebooks, terminals and people put something before each line; a
logger may pack a whole traceback into one line of JSON.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\r\n]{0,200}(?:\x07|\x1b\\)?|[@-Z\\-_])|\x00"
)
_CLOCK = r"\d{1,2}:\d\d:\d\d(?:[.,]\d{1,9})?"
_DATE = r"(?:\d{4}-\d\d-\d\d|\d{4}/\d\d/\d\d|\d\d-\d\d|\d\d/\d\d/\d\d)"
_STAMP = rf"{_DATE}[T _]{_CLOCK}(?:Z|[ ]?[+-]\d\d:?\d\d)?|{_CLOCK}"
_LEVEL = r"(?:DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|CRITICAL|FATAL|TRACE|SUCCESS)"
#: What precedes a line without being part of it. The frame of a traceback keeps its indent.
_PREFIX = re.compile(
    r"\s*(?:"
    + "|".join((
        r"\[(?:rank|default)(?P<torch>\d{1,6})\]\s?:[ ]?",  # torch, torchrun --log-prefix
        r"\[\d+,(?P<mpi>\d{1,6})\]\s?<std(?:err|out|diag)>\s?:[ ]?",  # Open MPI --tag-output
        r"\[mpi_rank_(?P<mvapich>\d{1,6})\]:?[ ]",  # MVAPICH
        r"\(\s?[\w.:<> -]{0,60}\bpid=\d+(?:,[^()]{0,200})?\)[ ]?",  # Ray
        r"\[[\w./-]+/\d+ \(pid \d+\)\][ ]",  # Metaflow
        r"\[[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\][ ]",
        rf"\[?(?:{_STAMP})\]?(?:[ ]?[:,|-](?=[ ]))?[ ]",
        (
            rf"(?:[A-Z][a-z]{{2}} )?[A-Z][a-z]{{2}} [ \d]\d {_CLOCK}(?: \d{{4}})? \S+ "
            r"[\w.@\\/-]+(?:\[\d+\])?: "
        ),  # syslog
        r"\[[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}\][ ]",  # dmesg -T
        r"\[\s*\d{1,9}\.\d{6}\][ ]",  # dmesg
        rf"[DIWEF]\d{{4}} {_CLOCK} +\d+ [^\]]{{1,200}}\][ ]",  # glog, torch's loggers
        rf"\|?[ ]?{_LEVEL}[ ]*[|:-][ ]?(?=\S)(?!-)",
        rf"{_LEVEL} (?:\d\d-\d\d {_CLOCK} )?\[[\w./:-]+\][ ]",  # vLLM, logging
        r"\[[\w./-]+:\d+(?::\w+)?\][ ]",
        r"[\w.<>-]+:[\w.<>-]+:\d+ - ",  # loguru
        r"(?:[\w-]+[\w.-]* +)\|[ ](?!\d)(?=\s*\S)(?=[^|]*$)",  # docker compose
        r"\d{1,4}: ",  # srun --label
        r"[│┃|╎║][ ](?=\s*\S)",
        r"[>#*] (?![*])",
        r"={9}[ ]{5}",  # compute-sanitizer
        r"[❌⚡⚠✖🔥💥🚨]\ufe0f?[ ]",
    ))
    + ")"
)  # fmt: skip
#: A line that people quote as code or in bold.
_QUOTED = re.compile(r"(?P<mark>\*\*|`)(?P<text>[A-Za-z(\[].*)(?P=mark)\s*$")
_BOX_END = re.compile(r"\s*[│┃║]\s*$")
_MOST_PREFIXES, _PREFIX_CHARS = 8, 200
_RANK_INSIDE = re.compile(
    r"\b(?:local_rank|rank)\s*: (\d{1,6})\b|\[Rank (\d{1,6})\]|\bRankID:(\d{1,6})"
)
_NCCL_RANK = re.compile(r"^\S+:\d+:\d+ \[(\d{1,6})\] .*\bNCCL\b")
#: The fields of a structured log that hold what a program printed, in the order of reading.
_JSON_FIELDS = (
    "message", "msg", "log", "textPayload", "text", "event", "exc_info", "exc_text", "exception",
    "traceback", "stack_trace", "stack", "error",
)  # fmt: skip
_JSON_CHARS = 1 << 16


@dataclass(frozen=True, slots=True)
class Line:
    """One line without colours and prefixes, and the rank whose launcher marked it.

    `width` is the number of characters that stood in the terminal, prefixes included.
    """

    text: str
    rank: int | None
    width: int = 0


def strip_ansi(text: str) -> str:
    """Remove colours, cursor movements and NULs (which also makes UTF-16 readable)."""
    return _ANSI.sub("", text) if "\x1b" in text or "\0" in text else text


def read_line(raw: bytes) -> Line:
    """Decode a line of a log; what is not UTF-8 becomes a replacement character."""
    return _strip(strip_ansi(raw.decode("utf-8", "replace")))


def unpack(raw: bytes) -> list[Line]:
    """Decode one physical line, which holds several if it is a record of a structured log."""
    if raw.lstrip()[:1] == b"{" and len(raw) <= _JSON_CHARS:
        packed = _packed(raw)
        if packed:
            return [_strip(strip_ansi(text)) for text in packed]
    return [read_line(raw)]


def read_lines(raw: bytes) -> list[Line]:
    """Decode the lines of a piece of log; carriage returns end lines as well."""
    pieces = raw.replace(b"\r", b"\n").split(b"\n")
    return [line for piece in pieces if piece.strip() for line in unpack(piece)]


def rank_of(line: Line) -> int | None:
    """Return which rank a line is about: by its prefix, else by its text."""
    if line.rank is not None:
        return line.rank
    match = _RANK_INSIDE.search(line.text) or _NCCL_RANK.match(line.text)
    return next((int(group) for group in match.groups() if group), None) if match else None


def _strip(text: str) -> Line:
    """Remove the prefixes of a line, as many as there are."""
    width, rank = len(text), None
    for _ in range(_MOST_PREFIXES):
        match = _PREFIX.match(text, 0, _PREFIX_CHARS)
        if match is None:
            break
        if match.lastgroup:
            rank = int(match[match.lastgroup])
        text = text[match.end() :]
    if text[-1:] in "│┃║ " and (end := _BOX_END.search(text)):
        text = text[: end.start()]
    if text[:1] in "*`" and (quoted := _QUOTED.match(text)):
        text = quoted["text"]
    return Line(text, rank, width)


def _packed(raw: bytes) -> list[str]:
    """Return the lines in the text fields of a JSON record; none if it is not one."""
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return []
    if not isinstance(record, dict):
        return []
    texts = [value for name in _JSON_FIELDS if isinstance(value := record.get(name), str)]
    return [line for text in texts for line in text.splitlines() if line.strip()]
