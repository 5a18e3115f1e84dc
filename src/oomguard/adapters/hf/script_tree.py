"""The syntax tree of a user's script, whatever is in the file."""

from __future__ import annotations

import ast
import warnings
from functools import lru_cache

#: What Python raises for a text that it cannot parse, or that is nested too deeply.
_BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)


@lru_cache(maxsize=8)  # a ladder asks for each plan, and each reader of a script too
def parsed(code: str) -> ast.Module | None:
    """Return the tree of a script, None if it is no Python; its warnings are its own business.

    Every caller gets the same tree, so none may change it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(code)
            ast.unparse(tree)  # as deep as whatever is done with it
        except _BROKEN:
            return None
    return tree


def literal(node: ast.expr, otherwise: object) -> object:
    """Return the value of a literal, or `otherwise` for an expression that computes one."""
    try:
        return ast.literal_eval(node)
    except (*_BROKEN, TypeError):
        return otherwise
