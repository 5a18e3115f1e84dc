"""How long the samples of local training files are: what a cut of the sequence would lose.

JSON (a list of records) and JSON lines are read, in any layout: all texts of a record count, those
in a column of media paths do not. LLaMA-Factory's `dataset_info.json` says which file a data set
is.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from oomguard import present
from oomguard.dataset.image_size import Size, size_of
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.training_job import BY_TOKENIZER, Job, Lengths
from oomguard.units import MIB

#: Enough to know a distribution by; reading on would only delay the launch.
MOST_BYTES = 64 * MIB
MOST_SAMPLES = 20_000
#: Samples whose image files are opened: a tenth of a second's worth.
MOST_PICTURED = 2_000
MOST_KEPT = 256
#: What a tokenizer counts in a few seconds; of more, a part of the samples is counted.
MOST_CHARACTERS = 8_000_000
#: English in the vocabularies of current models; other languages have fewer.
CHARACTERS_PER_TOKEN = 4
#: What a chat template puts around a sample.
TEMPLATE_TOKENS = 64
#: Whisper's encoder hears 30 s at most, as 1500 frames, of which Qwen2-Audio keeps every second.
AUDIO_TOKENS = 750
#: Tokens that mark the beginning and the end of each image or sound.
MARKS = 2

Kept = TypeVar("Kept")

_MEDIA = {"image": "image", "images": "image", "audio": "audio", "audios": "audio"}
_MEDIA |= {"video": "video", "videos": "video"}
_PLACEHOLDER = re.compile(r"<(image|audio|video)>")
_ANSWERS = frozenset({"output", "response", "completion", "answer", "chosen", "rejected"})
_SPEAKERS = frozenset({"gpt", "assistant", "bot", "function_call"})
#: Patch size and merge of the vision towers that are known by name.
_TOWERS = ((re.compile(r"qwen2(\.5)?-?vl", re.IGNORECASE), 14, 2),)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """One record: its prompt and answer, and how much media it holds."""

    prompt: str
    answer: str
    media: Mapping[str, int]
    images: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    place: str = ""


#: Returns the number of tokens of each text, None where the model's tokenizer cannot count them.
CountTokens = Callable[[Sequence[str]], Sequence[int] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counted:
    """Tokens by text: by a tokenizer, or by a ratio."""

    tokens: Callable[[str], int]
    name: str
    slack: int  # as often may there be more tokens than counted


_BY_RATIO = _Counted(
    tokens=lambda text: math.ceil(len(text) / CHARACTERS_PER_TOKEN),
    name=f"{CHARACTERS_PER_TOKEN} characters a token, a guess",
    slack=2,
)


def with_lengths(job: Job, recipe: MemorySettings, count: CountTokens | None = None) -> Job:
    """Return the job with the lengths of its samples, where its files can be read.

    Without `count`, or where it cannot, tokens are counted by a ratio.
    """
    every = [
        sample
        for path in recipe.data
        for sample in _samples(Path(path), Path(job.cwd), recipe.columns)
    ][:MOST_SAMPLES]
    if not every:
        return job
    samples, counted = every, _BY_RATIO
    if count is not None:
        some = _spread(sorted(every, key=_size), _most_counted(every))
        by_tokenizer = _by_tokenizer(some, len(every), count)
        if by_tokenizer is not None:
            samples, counted = some, by_tokenizer
    per_image = _image_tokens(job, recipe)
    tokens, needs = [], []
    for sample in samples:
        media = _media_tokens(sample, per_image)
        prompt, answer = counted.tokens(sample.prompt), counted.tokens(sample.answer)
        tokens.append(prompt + answer + (media or 0))
        needs.append(_need(sample, media, prompt, answer, counted))
    lengths = Lengths(
        samples=len(every),
        sorted_tokens=tuple(_spread(sorted(tokens), MOST_KEPT)),
        at_most=max(tokens) * counted.slack + TEMPLATE_TOKENS,
        counted_by=counted.name,
        least=0 if None in needs else max(need or 0 for need in needs),
        filled=recipe.packing,
        images=_largest(every, job.asked.image_pixels),
        longest_at=samples[tokens.index(max(tokens))].place,
    )
    return replace(job, lengths=lengths)


def _size(sample: _Sample) -> int:
    return len(sample.prompt) + len(sample.answer)


def _most_counted(samples: Sequence[_Sample]) -> int:
    """Return how many samples a tokenizer counts in a few seconds, at their mean size."""
    characters = sum(map(_size, samples))
    return (
        len(samples)
        if characters <= MOST_CHARACTERS
        else max(1, len(samples) * MOST_CHARACTERS // characters)
    )


def _by_tokenizer(samples: Sequence[_Sample], all_of: int, count: CountTokens) -> _Counted | None:
    """Count every text that is needed of the samples at once."""
    texts = [text for one in samples for text in (one.prompt, one.answer, _before_media(one))]
    unique = list(dict.fromkeys(text for text in texts if text))
    found = count(unique)
    if found is None:
        return None
    known = {"": 0, **dict(zip(unique, found, strict=True))}
    part = len(samples) < all_of
    return _Counted(
        tokens=known.__getitem__,
        name=f"{BY_TOKENIZER}, on {len(samples)} of {all_of} samples" if part else BY_TOKENIZER,
        slack=2 if part else 1,
    )


def _before_media(sample: _Sample) -> str:
    """Return a prompt up to its last image or sound, "" where it marks none."""
    places = [match.end() for match in _PLACEHOLDER.finditer(sample.prompt)]
    return sample.prompt[: places[-1]] if places and sample.media else ""


def _largest(samples: Iterable[_Sample], limit: int | None) -> tuple[Size, ...]:
    """Return the sizes of the images of the sample that has the most pixels, each up to a limit."""
    pictured = [sample for sample in samples if sample.images][:MOST_PICTURED]
    sizes = [tuple(size_of(_found(name, one.folders)) for name in one.images) for one in pictured]
    known = [tuple(size for size in one if size) for one in sizes if None not in one]
    most = limit or sys.maxsize
    return max(known, key=lambda one: sum(min(most, h * w) for h, w in one), default=())


def _need(
    sample: _Sample, media: int | None, prompt: int, answer: int, counted: _Counted
) -> int | None:
    """Return the shortest cut that leaves the media whole; None where that is not known.

    Frameworks cut prompt and answer in proportion when both are long, and each at its end
    (LLaMA-Factory's `infer_seqlen`).
    """
    if not sample.media:
        return 0
    if media is None:
        return None
    marked = _before_media(sample)
    before = counted.tokens(marked) if marked else prompt
    end, whole = media + before + TEMPLATE_TOKENS, media + prompt + TEMPLATE_TOKENS
    shared = math.ceil(end * (whole + answer) / whole)
    return min(whole + answer, max(end + answer, shared))


def _media_tokens(sample: _Sample, per_image: int | None) -> int | None:
    """Return the most tokens that a sample's media can become; None where that is not known."""
    images, sounds = sample.media.get("image", 0), sample.media.get("audio", 0)
    if "video" in sample.media or (images and per_image is None):
        return None
    return images * ((per_image or 0) + MARKS) + sounds * (AUDIO_TOKENS + MARKS)


def _image_tokens(job: Job, recipe: MemorySettings) -> int | None:
    pixels, tower = job.asked.image_pixels, _tower(job, recipe)
    if pixels is None or tower is None:
        return None
    patch, merge = tower
    return math.ceil(pixels / (patch * merge) ** 2)


def _tower(job: Job, recipe: MemorySettings) -> tuple[int, int] | None:
    """Return patch size and merge: of the model's own folder, else of its name."""
    if recipe.model is None:
        return None
    files = [
        Path(job.cwd, recipe.model, name)
        for name in ("processor_config.json", "preprocessor_config.json")
    ]
    known = [tower[1:] for tower in _TOWERS if tower[0].search(recipe.model)]
    return next((tower for tower in (*map(_own_tower, files), *known) if tower), None)


def _own_tower(file: Path) -> tuple[int, int] | None:
    try:
        own = json.loads(file.read_text(encoding="utf-8"))
        own = own.get("image_processor", own)
        return int(own["patch_size"]), int(own["merge_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _spread(ordered: Sequence[Kept], most: int) -> list[Kept]:
    """Keep some, spread evenly over all in their order, the last among them."""
    last = len(ordered) - 1
    kept = min(most, len(ordered))
    return [ordered[last - round(place * last / max(1, kept - 1))] for place in range(kept)][::-1]


def _samples(path: Path, cwd: Path, columns: tuple[str, ...]) -> Iterator[_Sample]:
    file = data_file(path)
    for index, record in enumerate(records_in(file)):
        if isinstance(record, dict):
            used = {key: record[key] for key in columns if key in record} if columns else record
            yield replace(_sample(used, (file.parent, cwd)), place=f"{path}, sample {index}")


def data_file(path: Path) -> Path:
    """Find a data set's file: itself, a folder's only one, or what `dataset_info.json` says."""
    if present.is_file(path):
        return path
    if present.is_folder(path):
        files = [one for one in path.glob("*.json*") if one.name != "dataset_info.json"]
        return files[0] if len(files) == 1 else path
    try:
        info = json.loads((path.parent / "dataset_info.json").read_text(encoding="utf-8"))
        return path.parent / str(info[path.name]["file_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return path


def records_in(path: Path) -> Sequence[object]:
    """Read a JSON list or JSON lines; nothing where it is neither, or too large to be read."""
    try:
        if path.suffix not in (".json", ".jsonl") or path.stat().st_size > MOST_BYTES:
            return ()
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ()
    try:
        if path.suffix == ".jsonl" or not text.lstrip().startswith("["):
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        whole = json.loads(text)
        return whole if isinstance(whole, list) else ()
    except ValueError:
        return ()


def _sample(record: Mapping[str, Any], folders: tuple[Path, ...]) -> _Sample:
    """Read a record; its media lie beside the file or where the job runs."""
    media: dict[str, int] = {}
    images: list[str] = []
    prompt: list[str] = []
    answer: list[str] = []
    shorter = _shorter_of_pair(record)
    for key, value in record.items():
        if key == shorter:
            continue
        if key in _MEDIA and value:
            files = value if isinstance(value, list) else [value]
            media[_MEDIA[key]] = media.get(_MEDIA[key], 0) + len(files)
            images += [str(file) for file in files if _MEDIA[key] == "image"]
        elif isinstance(value, str):
            (answer if key in _ANSWERS else prompt).append(value)
        elif isinstance(value, list):
            for text, is_answer in _turns(value):
                (answer if is_answer else prompt).append(text)
    return _Sample(
        prompt="\n".join(prompt),
        answer="\n".join(answer),
        media=media,
        images=tuple(images),
        folders=folders,
    )


def _shorter_of_pair(record: Mapping[str, Any]) -> str | None:
    """Return the column of a pair's shorter answer: each is in a row of its own."""
    pair = [key for key in ("chosen", "rejected") if record.get(key)]
    return min(pair, key=lambda key: len(str(record[key]))) if len(pair) > 1 else None


def _found(name: str, folders: tuple[Path, ...]) -> Path:
    """Return where an image lies; in the first folder where it lies in none."""
    places = [folder / name for folder in folders]
    return next((place for place in places if present.is_file(place)), places[0])


def _turns(messages: list[Any]) -> Iterator[tuple[str, bool]]:
    """Read a conversation: {from, value}, {role, content}, or pairs of question and answer."""
    for message in messages:
        if isinstance(message, dict):
            speaker = message.get("from", message.get("role"))
            text = message.get("value", message.get("content"))
            if isinstance(text, str):
                yield text, speaker in _SPEAKERS
        elif isinstance(message, list):
            yield from ((text, False) for text in message if isinstance(text, str))
