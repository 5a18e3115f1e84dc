"""docs/promises.md: each promise of README.md and SECURITY.md, and the tests that hold it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MATRIX = (ROOT / "docs" / "promises.md").read_text()
#: Where each page promises something: from the first text to the second.
SECTIONS = (
    ("README.md", "oomguard catches the OOM", "\n\n"),
    ("README.md", "Each takes `--json`", "\n\n"),
    ("README.md", "## Guarantees\n", "\n## "),
    ("README.md", "A strategy is skipped, with a logged reason", "\n\n"),
    ("README.md", "Only its owner can read it", "\n\n"),
    ("SECURITY.md", "oomguard starts the training command", "\n\n"),
    ("SECURITY.md", "## What is promised\n", "\n## "),
)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_END = re.compile(r"(?<=[.!?])\**\s+(?=[A-Z`*])")
_LEAST_CHARS = 9


def sentences() -> list[str]:
    """Return every sentence of the sections, without markup."""
    found = []
    for page, begin, end in SECTIONS:
        text = (ROOT / page).read_text()
        assert text.count(begin) == 1, begin
        start = text.index(begin) + (len(begin) if begin.startswith("#") else 0)
        section = text[start : text.index(end, start)]
        for line in section.splitlines():
            plain = re.sub(r"^(?:-|\d+\.) ", "", _LINK.sub(r"\1", line.strip()))
            plain = re.sub(r" \((?:how|tests?|rows)(?:, (?:how|tests?))*\)", "", plain)
            found += [part.replace("*", "") for part in _END.split(plain) if part]
    return found


def rows() -> list[tuple[str, list[str]]]:
    """Return how each promise begins, and the tests that hold it."""
    cells = [line.strip("| ").split(" | ") for line in MATRIX.splitlines() if line.startswith("| ")]
    table = [row for row in cells if len(row) == 2 and row[0] != "promise"]
    return [(begin, re.findall(r"`([^`]+::[^`]+)`", tests)) for begin, tests in table]


@cache
def functions(path: str) -> frozenset[str]:
    """Return the functions of a test file."""
    tree = ast.parse((ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


@pytest.mark.parametrize("sentence", sentences())
def test_every_promise_has_a_row(sentence):
    held = [tests for begin, tests in rows() if sentence.startswith(begin)]
    assert len(held) == 1, f"docs/promises.md has {len(held)} rows for: {sentence}"
    assert held[0], f"no test holds: {sentence}"


@pytest.mark.parametrize(("begin", "tests"), rows())
def test_every_row_is_a_promise_whose_tests_exist(begin, tests):
    assert len(begin) >= _LEAST_CHARS
    assert any(sentence.startswith(begin) for sentence in sentences()), "it is promised nowhere"
    for name in tests:
        path, _, function = name.partition("::")
        assert function in functions(path), name


def test_one_module_alone_uses_the_network():
    modules = {"http", "urllib.request", "ftplib", "smtplib", "ssl", "requests", "httpx", "aiohttp"}
    families = {"AF_INET", "AF_INET6", "create_connection", "create_server"}
    users = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                named = [node.module or ""]
            used = isinstance(node, ast.Attribute) and node.attr in families
            if used or any(
                name == m or name.startswith(f"{m}.") for name in named for m in modules
            ):
                users.add(path.relative_to(ROOT / "src/oomguard").as_posix())
    assert users == {"catalogue/lookup.py"}
