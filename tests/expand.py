"""Make texts that a regular expression matches: each of its branches, with and without options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import Any

try:
    from re import _constants as codes  # Python 3.11
    from re import _parser as parser
except ImportError:
    import sre_constants as codes
    import sre_parse as parser

MOST_OF_ONE, MOST = 300, 3000
CATEGORIES = {
    codes.CATEGORY_DIGIT: "7", codes.CATEGORY_WORD: "x", codes.CATEGORY_SPACE: " ",
    codes.CATEGORY_NOT_SPACE: "x", codes.CATEGORY_NOT_DIGIT: "x", codes.CATEGORY_NOT_WORD: " ",
}  # fmt: skip
#: What an inverted set or a dot may stand for.
ANY = " xX7-."


def texts_of(pattern: re.Pattern[str]) -> Iterator[str]:
    """Yield candidates; those that break a look-around or a boundary do not match."""
    for text in _sequence(parser.parse(pattern.pattern)):
        yield text
        yield f" {text} "
        yield f"{text}:"


def _sequence(items: Any) -> Iterator[str]:
    parts = [list(islice(_one(item), MOST_OF_ONE)) for item in items]
    for combination in islice(product(*parts), MOST):
        yield "".join(combination)


def _one(item: tuple[Any, Any]) -> Iterator[str]:  # noqa: C901  a case for each kind
    kind, value = item
    if kind is codes.LITERAL:
        yield chr(value)
    elif kind is codes.NOT_LITERAL:
        yield next(x for x in ANY if ord(x) != value)
    elif kind is codes.ANY:
        yield " "
    elif kind is codes.IN:
        yield from _set(value)
    elif kind in (codes.MAX_REPEAT, codes.MIN_REPEAT):
        least, most, inner = value
        yield from islice(_sequence(list(inner) * least), MOST_OF_ONE)
        if least == 0 and most > 0:
            yield from islice(_sequence(list(inner)), MOST_OF_ONE)
    elif kind is codes.SUBPATTERN:
        yield from _sequence(value[3])
    elif kind is codes.BRANCH:
        for branch in value[1]:
            yield from islice(_sequence(branch), MOST_OF_ONE)
    elif kind in (codes.AT, codes.ASSERT, codes.ASSERT_NOT):
        yield ""
    else:
        raise ValueError(f"no text is made for {kind}")


def _set(members: Sequence[tuple[Any, Any]]) -> Iterator[str]:
    if members[0][0] is codes.NEGATE:
        yield next(x for x in ANY if not any(_holds(member, x) for member in members[1:]))
        return
    for kind, value in members:
        if kind is codes.CATEGORY:
            yield CATEGORIES[value]
        else:
            yield chr(value if kind is codes.LITERAL else value[0])


def _holds(member: tuple[Any, Any], text: str) -> bool:
    kind, value = member
    if kind is codes.LITERAL:
        return ord(text) == value
    if kind is codes.RANGE:
        return bool(value[0] <= ord(text) <= value[1])
    return CATEGORIES.get(value) == text
