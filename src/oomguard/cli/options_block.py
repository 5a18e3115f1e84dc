"""Read a train.yaml: the framework's own config, and the `oomguard:` block in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from oomguard.configfile.document import Document, Source
from oomguard.errors import ConfigError, Where, did_you_mean
from oomguard.ladder.strategy import Fidelity
from oomguard.process.limits import CapBy
from oomguard.units import MIB, parse_size, show_bytes

BLOCK = "oomguard"
#: Configs are written by hand; what is larger was named by mistake.
MOST_BYTES = 4 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a job is to be brought to the end; None (and no words) where nothing was said.

    `host_memory_by` is `rlimit` or `cgroup`; `runs_dir`, `strategies` and `python` are paths as
    they were written.
    """

    framework: str | None = None
    command: tuple[str, ...] = ()
    python: str | None = None
    ladder: str | None = None
    allow: Fidelity | None = None
    max_attempts: int | None = None
    host_memory_bytes: int | None = None
    host_memory_by: str | None = None
    gpu_memory_bytes: int | None = None
    name: str | None = None
    runs_dir: str | None = None
    strategies: str | None = None
    hang_timeout_s: float | None = None
    relax: bool | None = None
    grow: bool | None = None
    probe: bool | None = None
    checkpoint_every: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A config file: its text and values without the `oomguard:` block, and that block's options.

    The lines of the text have the numbers that they have in the file.
    """

    source: Source
    document: Mapping[str, object]
    options: Options


def load(path: Path) -> Loaded:
    """Read a config file.

    Raises:
        ConfigError: if it cannot be read, is not a YAML or JSON mapping, or its `oomguard:` block
            is wrong, with file, line and key.
    """
    source = Source(path=str(path.absolute()), text=_read(path))
    whole = source.document
    options = _options(whole)
    rest = Source(path=source.path, text=whole.without(BLOCK))
    if not set(whole.values) - {BLOCK}:
        raise _error("has no framework settings besides the oomguard: block", path)
    return Loaded(source=rest, document=rest.document.values, options=options)


def _read(path: Path) -> str:
    if path.is_dir():
        raise _error("is a folder, not a config file", path)
    if not path.exists():
        names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise _error("does not exist", path, did_you_mean(path.name, names))
    if not path.is_file():
        raise _error("is not a regular file", path)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise _error(
                f"is larger than {show_bytes(MOST_BYTES)}, so it is not a config file", path
            )
        return data.decode("utf-8")
    except OSError as error:
        raise _error(f"cannot be read: {error.strerror}", path) from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            "is not UTF-8",
            where=Where(file=str(path), line=line),
            next_step="Save it as UTF-8.",
        ) from error


def _error(what: str, path: Path, next_step: str = "") -> ConfigError:
    return ConfigError(what, where=Where(file=str(path)), next_step=next_step)


def _options(document: Document) -> Options:
    block = document.get(BLOCK)
    if block is None:
        return Options()
    if not isinstance(block, dict):
        raise ConfigError("must be a mapping of options", where=document.where(BLOCK))
    fields = {}
    for key, value in block.items():
        where = document.where(f"{BLOCK}.{key}")
        if key not in _READERS:
            guess = did_you_mean(str(key), _READERS) or f"Valid options: {', '.join(_READERS)}."
            raise ConfigError("is not an oomguard option", where=where, next_step=guess)
        field, reader = _READERS[key]
        try:
            fields[field] = None if value is None else reader(value)
        except ValueError as error:
            raise ConfigError(str(error), where=where) from error
    stated = {name: value for name, value in fields.items() if value is not None}
    return Options(**stated)  # type: ignore[arg-type]  # each reader gives its field's type


def _word(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a string, not {value!r}")
    return value


def _words(value: object) -> tuple[str, ...]:
    words = value if isinstance(value, list) else []
    if not words or any(isinstance(w, bool) or not isinstance(w, str | int | float) for w in words):
        raise ValueError(f"must be a list of arguments such as [python, train.py], not {value!r}")
    return tuple(str(word) for word in words)


def _ladder(value: object) -> str:
    return ",".join(_words(value)) if isinstance(value, list) else _word(value)


def _size(value: object) -> int:
    is_size = isinstance(value, str | int) and not isinstance(value, bool)
    return parse_size(str(value) if is_size else repr(value))


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be an integer of at least 1, not {value!r}")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"must be a positive number of seconds, not {value!r}")
    return float(value)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")  # noqa: TRY004  as all readers
    return value


def _one_of(known: tuple[str, ...]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in known:
            guess = did_you_mean(str(value), known)
            raise ValueError(f"must be one of {', '.join(known)}, not {value!r}. {guess}".rstrip())
        return str(value)

    return read


def _fidelity(value: object) -> Fidelity:
    return Fidelity(_one_of(tuple(fidelity.value for fidelity in Fidelity))(value))


#: Key in the file -> field of `Options`, and how its value is read.
_READERS: Mapping[str, tuple[str, Callable[[object], object]]] = {
    "framework": ("framework", _word),
    "command": ("command", _words),
    "python": ("python", _word),
    "ladder": ("ladder", _ladder),
    "allow": ("allow", _fidelity),
    "max_attempts": ("max_attempts", _count),
    "host_memory": ("host_memory_bytes", _size),
    "host_memory_by": ("host_memory_by", _one_of(tuple(by.value for by in CapBy))),
    "gpu_memory": ("gpu_memory_bytes", _size),
    "name": ("name", _word),
    "runs_dir": ("runs_dir", _word),
    "strategies": ("strategies", _word),
    "hang_timeout": ("hang_timeout_s", _seconds),
    "relax": ("relax", _truth),
    "grow": ("grow", _truth),
    "probe": ("probe", _truth),
    "checkpoint_every": ("checkpoint_every", _count),
}
