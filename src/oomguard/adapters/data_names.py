"""The data sets that a job names, as files, folders or names, in the spellings of its framework."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping

#: `#500` after a data set of ms-swift takes that many samples of it; `HF::` says where it is.
_SWIFT = re.compile(r"^(?:[A-Za-z]+::)?(?P<name>.*?)(?:#\d+)?$")


def in_folder(names: Iterable[str], cwd: str) -> tuple[str, ...]:
    """Return names as paths in the job's folder, each once."""
    return tuple(dict.fromkeys(posixpath.join(cwd, name) for name in names))


def in_entries(entries: object) -> Iterator[str]:
    """Yield what a list of mappings names: the files of an entry, else its path."""
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping):
            yield from _texts(entry.get("data_files")) or _texts(entry.get("path"))


def of_swift(words: Iterable[str]) -> Iterator[str]:
    """Yield the data sets of ms-swift without their numbers of samples."""
    for word in words:
        match = _SWIFT.match(word)
        yield match["name"] if match else word


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str)]
