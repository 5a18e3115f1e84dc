"""The syntax tree of a user's script, whatever is in the file."""

from __future__ import annotations

import ast
import warnings

#: What Python raises for a text that it cannot parse, or that is nested too deeply.
_BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)


def parsed(code: str) -> ast.Module | None:
    """Return the tree of a script, None if it is no Python; its warnings are its own business."""
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
