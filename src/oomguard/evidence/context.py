"""What the lines before a failure tell about it: the phase, the rank, the step."""

# ruff: noqa: E501 -- a rule is one line
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from oomguard.evidence.verdict import Phase

_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\r\n]{0,200}(?:\x07|\x1b\\)?|[@-Z\\-_])|\x00"
)
_RANK = re.compile(
    r"^\s*(?:\[(?:rank|default)(?P<a>\d{1,6})\]\s?:|\[\d+,(?P<b>\d{1,6})\]<std(?:err|out)>:)\s?"
)
_QUOTE = re.compile(r"^(?:\s{0,8}[#>|] )+")
_RANK_INSIDE = re.compile(r"\b(?:local_rank|rank)\s*: (\d{1,6})\b|\[Rank (\d{1,6})\]")

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line \d+, in (?P<name>\S+)')
_BEGIN = "Traceback (most recent call last)"
_STRAY_LINES = 12  # of source, carets or another process between two frames

#: Frames that open a phase whatever stands around them; (phase, file, function).
_STRONG_FRAMES = tuple(
    (phase, re.compile(file), re.compile(name))
    for phase, file, name in (
        (Phase.BACKWARD, r"", r"^_?backward$|^run_backward$|^_engine_run_backward$|_backward(_hook|_pass)?$|^backward_"),
        (Phase.FORWARD, r"", r"^training_step$|^_?(wrap_)?closure$"),
        (Phase.OPTIMIZER, r"optim|deepspeed|zero", r"^_?(single_|multi_)?(optimizer_)?step$|^_init_group$|^_take_model_step$|^_init_state$"),
        (Phase.OPTIMIZER, r"", r"^(_?optimizer_step|init_optimizer_state|_initialize_optimizer_states)$"),
        (Phase.EVAL, r"", r"^(_?evaluate|_?validate|evaluation_loop|prediction_step|predict_step|validation_step|_maybe_log_save_evaluate|_run_validation|test_step)$"),
        (Phase.SAVE, r"", r"^_?save(_|$)|^_?(save|write)_\w*(checkpoint|state|model)|^_save_checkpoint$|^gather_\w*state_dict$|^_zero3_consolidated_16bit_state_dict$"),
        (Phase.LOAD, r"", r"from_pretrained|^_?load(_\w+)?$|^load_(model|state_dict|checkpoint|weights)|set(up)?_(kv_)?caches?$|^_apply$|^to_empty$|^create_weights$|^deepspeed_init$"),
        (Phase.PREPROCESS, r"", r"^get_(train_|eval_)?dataset$|^_?get_(preprocessed|merged)_dataset$|^load_dataset$|^_map_single$|^tokenize(_\w+)?$|^preprocess(_\w+)?$|^_?prepare_dataset$"),
        (Phase.PREPROCESS, r"/datasets/", r"^map$|^_?(iter|batch)_\w*$"),
    )
)  # fmt: skip
#: Frames that name a phase only where nothing around them did.
_WEAK_FRAMES = re.compile(r"(?:^|_)forward(?:_|$)|^compute_loss$|(?:^|_)generate(?:_|$)")
#: Frames and source lines that move memory to the host or pin it there.
_PINNING = re.compile(
    r"(?i)pin_memory|pinned|offload\w*_(?:to_)?cpu|host_?register|host_?alloc|page_?lock"
)

#: What the lines between tracebacks say that the job is doing.
_MARKS = tuple(
    (phase, re.compile(pattern))
    for phase, pattern in (
        (Phase.SAVE, r"(?i)\bsaving (?:\w+ ){0,3}(?:checkpoint|weights|model)|\bcheckpoint (?:write|save|saving)|model weights saved"),
        (Phase.EVAL, r"\*{3,} ?Running (?:Evaluation|Prediction|evaluation)|(?i:\bvalidating\b)"),
        (Phase.PREPROCESS, r"(?i)converting format of dataset|running tokenizer on dataset|^tokenizing\b|\bmap \(num_proc|generating \w+ split|\bpreprocessing\b|^map:\s+\d+%"),
        (Phase.LOAD, r"(?i)loading (?:\w+ )?(?:checkpoint shards|weights|model)|\bweights? loading\b|loading safetensors|model loading took"),
        (Phase.BACKWARD, r"\.backward\(\)"),
        (Phase.OPTIMIZER, r"\boptimizer\.step\(\)"),
    )
)  # fmt: skip
_PREPARING = re.compile(
    r"(?i)loading|tokeniz|\bmap\b|generating|converting|download|fetching|examples/s|\bB/s|evaluat|validat|shards"
)
_STEPS = (
    re.compile(r"(?i)\b(?:global[_ ]?|current_)?steps?[\"']?\s*[:=#]?\s*(\d{1,9})\b.{0,200}\bloss\b"),
    re.compile(r"(?i)\b(?:iter(?:ation)?|batch|updates?)\b[\"']?\s*[:=#]?\s*(\d{1,9})\b.{0,200}\bloss\b"),
    re.compile(r"(?i)\bloss\b.{0,200}\b(?:global[_ ]?)?(?:steps?|iter(?:ation)?|num_updates)\b[\"']?\s*[:=]?\s*(\d{1,9})\b"),
    re.compile(r"\|\s*(\d{1,9})/\d{1,9} \[\d+:\d\d"),
    re.compile(r"(?i)\bepoch:? \[\d+\]\s*\[\s*(\d{1,9})/\d+\].{0,200}\bloss\b"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One line without colours and quoting, and the rank whose launcher marked it."""

    text: str
    rank: int | None


def strip_ansi(text: str) -> str:
    """Remove colours, cursor movements and NULs (which also makes UTF-16 readable)."""
    return _ANSI.sub("", text) if "\x1b" in text or "\0" in text else text


def read_line(raw: bytes) -> Line:
    """Decode a line of a log; what is not UTF-8 becomes a replacement character."""
    text = _QUOTE.sub("", strip_ansi(raw.decode("utf-8", "replace")))
    match = _RANK.match(text)
    if match is None:
        return Line(text, None)
    return Line(_QUOTE.sub("", text[match.end() :]), int(match["a"] or match["b"]))


def read_lines(raw: bytes) -> list[Line]:
    """Decode the lines of a piece of log; carriage returns end lines as well."""
    return [read_line(piece) for piece in raw.replace(b"\r", b"\n").split(b"\n") if piece.strip()]


def rank_of(line: Line) -> int | None:
    """Return which rank a line is about: by its prefix, else by its text."""
    if line.rank is not None:
        return line.rank
    match = _RANK_INSIDE.search(line.text)
    return int(match[1] or match[2]) if match else None


def step_of(text: str) -> int | None:
    """Return the training step in a progress line; None for any other line."""
    if ("loss" not in text.lower() and "/" not in text) or _PREPARING.search(text[:200]):
        return None
    found = (pattern.search(text) for pattern in _STEPS)
    return next((int(match[1]) for match in found if match), None)


def last_step(lines: Sequence[Line], rank: int | None) -> int | None:
    """Return the last training step before a failure; of this rank, if lines name their rank."""
    steps = (step_of(x.text) for x in reversed(lines) if rank is None or x.rank in (None, rank))
    return next((step for step in steps if step is not None), None)


@dataclass(frozen=True, slots=True)
class Traceback:
    """The frames (outermost first) and the source lines that stand before an error."""

    frames: tuple[tuple[str, str], ...]
    source: tuple[str, ...]

    @property
    def pins_memory(self) -> bool:
        """Return whether its innermost frames move memory to the host or pin it there."""
        return any(_PINNING.search(name) for _, name in self.frames[-2:]) or any(
            _PINNING.search(text) for text in self.source[-2:]
        )

    @property
    def phase(self) -> Phase:
        """What the innermost telling frame was doing; backward contains its recomputed forward."""
        phase = Phase.UNKNOWN
        for file, name in self.frames:
            strong = next(
                (p for p, f, n in _STRONG_FRAMES if f.search(file) and n.search(name)), None
            )
            if strong is not None:
                phase = strong
            elif phase is Phase.UNKNOWN:
                phase = _weak_phase(file, name)
        return phase if phase is not Phase.UNKNOWN else _mark(self.source)


def _weak_phase(file: str, name: str) -> Phase:
    # Models are built under a device context, through which every factory function then goes.
    if file.endswith("torch/utils/_device.py"):
        return Phase.LOAD
    return Phase.FORWARD if _WEAK_FRAMES.search(name) else Phase.UNKNOWN


def is_frame(line: Line) -> bool:
    """Return True if a line is the header of a traceback's frame."""
    return _FRAME.match(line.text) is not None


def traceback_before(lines: Sequence[Line], rank: int | None) -> Traceback:
    """Collect the traceback that ends with the last of these lines, other ranks' lines left out."""
    frames: list[tuple[str, str]] = []
    source: list[str] = []
    stray = 0
    for line in reversed(lines):
        if rank is not None and line.rank not in (None, rank):
            continue
        match = _FRAME.match(line.text)
        if match:
            frames.append((match["file"].replace("\\", "/"), match["name"]))
            stray = 0
        elif _BEGIN in line.text or stray >= _STRAY_LINES:
            break
        else:
            stray += 1
            source += [line.text] if frames or stray <= 2 else []  # noqa: PLR2004 -- the code and its carets
    return Traceback(tuple(reversed(frames)), tuple(reversed(source)))


def phase_before(lines: Sequence[Line], rank: int | None) -> Phase:
    """Return what the job was doing when the last of these lines was printed."""
    phase = traceback_before(lines[:-1], rank).phase
    if phase is not Phase.UNKNOWN or not lines:
        return phase
    said = _mark([lines[-1].text])
    return said if said is not Phase.UNKNOWN else _announced(lines, rank)


def _announced(lines: Sequence[Line], rank: int | None) -> Phase:
    """Return the phase that was announced last, unless training steps followed it."""
    for line in reversed(lines):
        if rank is not None and line.rank not in (None, rank):
            continue
        phase = _mark([line.text])
        if phase is not Phase.UNKNOWN:
            return phase
        if step_of(line.text) is not None:
            return Phase.UNKNOWN
    return Phase.UNKNOWN


def _mark(texts: Iterable[str]) -> Phase:
    found = (phase for text in texts for phase, pattern in _MARKS if pattern.search(text[:2000]))
    return next(found, Phase.UNKNOWN)
