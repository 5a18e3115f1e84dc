"""Find the strategies: the folder that comes with oomguard, and a user's own."""

from __future__ import annotations

import importlib.util
import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from oomguard import present
from oomguard.errors import StrategyError, Where, did_you_mean
from oomguard.ladder.climb import CLASSIC
from oomguard.ladder.strategy_contract import Fidelity, Remedy, Strategy

_HERE = Path(__file__).parent.parent
#: In a wheel the folder lies inside the package, in a checkout or an editable install at its root.
_PLACES = (_HERE / "_strategies", _HERE.parent.parent / "strategies")
_NAME = re.compile(r"(?P<order>\d+)_(?P<id>[a-z][a-z0-9_]*)\.py")


def own_folder() -> Path:
    """Return the folder of the default ladder."""
    found = next((place for place in _PLACES if present.is_folder(place)), None)
    if found is None:
        raise StrategyError(
            "the strategies that come with oomguard are missing",
            where=Where(file=str(_PLACES[0])),
            next_step="Install oomguard again.",
        )
    return found


def load_strategies(user_folder: Path | None = None) -> tuple[Strategy, ...]:
    """Load the default ladder, merged by number with a user's own folder.

    Raises:
        StrategyError: for a file that cannot be used, or an id that two files have.
    """
    folders = [own_folder(), *([user_folder] if user_folder else [])]
    files: dict[str, tuple[int, Path]] = {}
    for path in [path for folder in folders for path in _files(folder)]:
        order, name = _parse(path)
        if name in files:
            raise StrategyError(
                f"strategy {name!r} is defined twice: here and in {files[name][1]}",
                where=Where(file=str(path)),
                next_step="Rename one of the two files.",
            )
        files[name] = (order, path)
    ordered = sorted(files.items(), key=lambda item: (item[1][0], item[0]))
    return tuple(_load(path, name) for name, (_, path) in ordered)


def select(strategies: Sequence[Strategy], ladder: str | None) -> tuple[Strategy, ...]:
    """Return the strategies that `--ladder` names, in its order: `classic`, or ids between commas.

    Preflight strategies always stay: they guard what the ladder promises.

    Raises:
        StrategyError: for an id that no strategy has.
    """
    if ladder is None:
        return tuple(strategies)
    known = {strategy.id: strategy for strategy in strategies}
    wanted = tuple(ladder.replace(" ", "").split(","))
    if wanted == ("classic",):
        wanted = CLASSIC
    elif "classic" in wanted:
        raise StrategyError(
            "classic cannot be combined with ids",
            where=Where(key="--ladder"),
            next_step="Pass --ladder classic alone, or list the ids.",
        )
    for name in wanted:
        if name not in known:
            raise StrategyError(
                f"no strategy is called {name!r}",
                where=Where(key="--ladder"),
                next_step=f"{did_you_mean(name, known)} `oomguard ladder` lists them.".strip(),
            )
    rungs = (known[name] for name in dict.fromkeys(wanted) if not known[name].preflight)
    return (*(s for s in strategies if s.preflight), *rungs)


def _files(folder: Path) -> Iterable[Path]:
    where = Where(file=str(folder))
    try:
        paths = sorted(folder.iterdir())  # glob would find nothing where it may not look
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StrategyError(
            "this strategy folder does not exist",
            where=where,
            next_step="Pass a folder of strategy files with --strategies.",
        ) from error
    except OSError as error:
        raise StrategyError(
            f"this strategy folder cannot be read: {error.strerror}", where=where
        ) from error
    return [path for path in paths if path.suffix == ".py" and path.name != "__init__.py"]


def _parse(path: Path) -> tuple[int, str]:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise StrategyError(
            "a strategy file name must be its position and its id",
            where=Where(file=str(path)),
            next_step="For example 150_my_strategy.py.",
        )
    return int(match["order"]), match["id"]


def _load(path: Path, name: str) -> Strategy:
    module = _execute(path, name)
    strategy = getattr(module, "STRATEGY", None)
    if not isinstance(strategy, Strategy):
        raise StrategyError(
            "the file defines no STRATEGY = Strategy(...)",
            where=Where(file=str(path)),
            next_step="docs/strategies.md shows the built-in ones; each is a file in strategies/.",
        )
    wrong = _wrong_field(strategy)
    if wrong is not None:
        raise StrategyError(f"{wrong} in STRATEGY", where=Where(file=str(path)))
    return replace(strategy, id=name)


def _wrong_field(strategy: Strategy) -> str | None:
    """Return what a field of a user's strategy should be, None if all are as they should be."""
    sound = {
        "summary is not a string": isinstance(strategy.summary, str),
        "fidelity is not SAME_MATH, SAME_RECIPE or NEW_RECIPE": isinstance(
            strategy.fidelity, Fidelity
        ),
        "remedies is not a frozenset of Remedy": isinstance(strategy.remedies, frozenset)
        and all(isinstance(one, Remedy) for one in strategy.remedies),
        "change is not a function": callable(strategy.change),
    }
    return next((wrong for wrong, is_right in sound.items() if not is_right), None)


def _execute(path: Path, name: str) -> ModuleType:
    if present.exists(path) and not present.is_file(path):  # reading a pipe would wait for ever
        raise StrategyError("this is not a regular file", where=Where(file=str(path)))
    spec = importlib.util.spec_from_file_location(f"oomguard_strategy_{name}", path)
    if spec is None or spec.loader is None:
        raise StrategyError("the file cannot be imported", where=Where(file=str(path)))
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a user's file raises, SystemExit too, is its error
        raise StrategyError(
            f"the file does not load: {type(error).__name__}: {error}",
            where=Where(file=str(path), line=_line_in(error, path)),
        ) from error
    return module


def _line_in(error: BaseException, path: Path) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    here = path.absolute()
    return next((f.lineno for f in reversed(frames) if Path(f.filename).absolute() == here), None)
