"""Which flags a script takes, where its code shows a parser of its own that takes no others.

Source: Python 3.13, Lib/argparse.py.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import lru_cache

from oomguard.adapters.hf.script_tree import parsed

_MAKES = frozenset({"ArgumentParser", "argparse.ArgumentParser"})
_GROUPS = frozenset({"add_argument_group", "add_mutually_exclusive_group"})
#: What may be called on a parser without telling anything else of its flags.
_HARMLESS = frozenset({"set_defaults", "print_help", "print_usage", "error", "exit"})
_ADDS, _PARSES = "add_argument", "parse_args"


@lru_cache(maxsize=8)  # a ladder asks for each plan
def own_flags(code: str) -> tuple[str, ...] | None:
    """Return the flags of a script that ends at any other one; None if it may take others.

    It has one argparse parser, which nothing else in the script or beyond it gets hold of.
    """
    tree = parsed(code)
    if tree is None:
        return None
    parsers = list(_assigned(tree, _MAKES))
    if len(parsers) != 1 or _count(tree, _MAKES) != 1 or not _is_plain(parsers[0][1]):
        return None
    names = {parsers[0][0]}
    made = {f"{name}.{group}" for name in names for group in _GROUPS}
    names |= {name for name, _ in _assigned(tree, made)}
    calls = _calls_on(tree, names)
    if calls is None or not any(_parses_all(call) for call in calls):
        return None
    return _declared(call for call in calls if _method(call) == _ADDS)


def _assigned(tree: ast.AST, makers: Iterable[str]) -> Iterator[tuple[str, ast.Call]]:
    """Yield the names to which what a maker returns is given, with its call."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name) and ast.unparse(node.value.func) in makers:
                yield target.id, node.value


def _count(tree: ast.AST, makers: Iterable[str]) -> int:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sum(ast.unparse(node.func) in makers for node in nodes)


def _is_plain(call: ast.Call) -> bool:
    """Return whether a parser starts empty and has the usual prefix."""
    other = {"parents", "prefix_chars", "fromfile_prefix_chars", None}
    return not {word.arg for word in call.keywords} & other


def _calls_on(tree: ast.AST, names: set[str]) -> list[ast.Call] | None:
    """Return the calls of methods of a parser and its groups; None if it is used otherwise."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    known = {_ADDS, _PARSES, *_GROUPS, *_HARMLESS}
    found = [call for call in calls if _owner(call) in names and _method(call) in known]
    uses = sum(
        isinstance(node, ast.Name) and node.id in names and isinstance(node.ctx, ast.Load)
        for node in ast.walk(tree)
    )
    return found if uses == len(found) else None


def _owner(call: ast.Call) -> str | None:
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return owner.id if isinstance(owner, ast.Name) else None


def _method(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _parses_all(call: ast.Call) -> bool:
    return _method(call) == _PARSES and not call.args and not call.keywords


def _declared(calls: Iterable[ast.Call]) -> tuple[str, ...] | None:
    """Return the flags that calls of add_argument declare; None if one of them is computed."""
    flags: list[str] = []
    for call in calls:
        for word in call.args:
            if not isinstance(word, ast.Constant) or not isinstance(word.value, str):
                return None
            flags.append(word.value)
    return tuple(dict.fromkeys(flag for flag in flags if flag.startswith("--")))
