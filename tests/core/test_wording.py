"""The field's words: old phrases, and docstrings that open with a private verb, do not come back.

`ALLOWED` holds, for each file that is still to be rewritten, how many lines may match. It may only
shrink: lower the counts when you have rewritten a file.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED: dict[str, int] = json.loads(Path(__file__).with_name("wording_allowed.json").read_text())

#: Pattern and what to write instead.
BANNED = (
    (r"\bgo(es)? on (from|with)\b|\bgoing on (from|with)\b|\bgone on from\b", "resume, continue"),
    (r"\bbegins? again\b|\bbegun again\b|\bstarts? again\b", "restart"),
    (r"\bdearest\b", "most expensive, strongest"),
    (r"\bended well\b|\bends? well\b", "finished successfully"),
    (r"\bsigns? of life\b", "progress"),
    (r"\bheld against\b", "validated against"),
    (r"\b(is|are) taken to be\b", "assumed"),
    (r"\bto (its|the) end\b", "to completion"),
    (r"\breporter inside\b|\bthe reporter\b|--no-inside\b", "the monitor, --no-monitor"),
    (r"\bby hand\b", "manual command, manually"),
    (r"\btwins?\b", "tiny variant"),
    (r"\boutlook\b", "forecast"),
    (r"\bpassed over\b", "skipped because"),
    (r"\bno remedy\b", "does not apply to"),
    (r"\bfor want of memory\b", "out of memory"),
    (r"\bindex of fits\b", "history database"),
    (r"\bwas learnt\b|\blearnt\b", "history, learned"),
    (r"\bnewest (whole )?checkpoint\b", "latest checkpoint"),
    (r"\b(is|are|was|were) no (config|name|program|mapping|folder|number|rung|size|key|script)\b",
     "is not a ..."),
    (r"\b(?<!as )so (often|long|many)\b", "every N, this long, as many"),
    (r"\bthe words of\b", "arguments, flags"),
    (r"\bsaid no reason\b", "exited with code N; no error recognized"),
    (r"\bis at work in\b", "is locked by"),
    (r"\bgive the rights\b", "fix the permissions"),
    (r"\bis left of the ladder\b|\bno rung of the ladder is left\b", "all strategies exhausted"),
    (r"\bBring a\b.*\bjob\b", "run ... to completion"),
    (r"\bsure to fit\b", "guaranteed to fit"),
    (r"\bstands (here|there|in|on|once|twice)\b", "is"),
    (r"\bwords? of a command line\b", "arguments, flags"),
    (r"\bTake back\b|\bgive(s|n)? back\b|\bgiving back\b", "revert"),
)  # fmt: skip
OPENINGS = re.compile(r"(Give|Say|Whether|Name|Take|Let|Put|Tell|Hold)s?\b")


def pages() -> list[Path]:
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "recipes").rglob("*.yaml")),
        *sorted((ROOT / "benchmarks").rglob("README.md")),
    ]


def sources() -> list[Path]:
    return [
        path
        for folder in ("src", "strategies", "recipes")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def strings(path: Path) -> list[str]:
    """Return the lines of a file's string literals and docstrings."""
    tree = ast.parse(path.read_text())
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return [line for text in texts for line in text.splitlines()]


def found(lines: list[str]) -> list[str]:
    return [
        f"{match.group()!r} (write: {instead}): {line.strip()[:90]}"
        for line in lines
        for pattern, instead in BANNED
        if (match := re.search(pattern, line, re.IGNORECASE))
    ]


def openings(path: Path) -> list[str]:
    """Return the docstrings of a file that open with a private verb."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, documented)
    ]
    return [f"docstring opens so: {doc.splitlines()[0]}" for doc in docs if OPENINGS.match(doc)]


def matches() -> dict[str, list[str]]:
    all_of = {path: found(path.read_text().splitlines()) for path in pages()}
    all_of |= {path: found(strings(path)) + openings(path) for path in sources()}
    return {str(path.relative_to(ROOT)): rows for path, rows in all_of.items() if rows}


def test_the_old_phrases_do_not_come_back():
    seen = matches()
    more = {name: rows for name, rows in seen.items() if len(rows) > ALLOWED.get(name, 0)}
    assert more == {}


@pytest.mark.parametrize(
    "line",
    ["it is no config of any", "goes on from step 3", "the dearest first", "held against runs"],
)
def test_the_table_finds_what_it_bans(line):
    assert found([line])


def test_good_lines_pass():
    assert found(["Resume a run from its latest checkpoint.", "as long as it takes"]) == []


def test_counts_are_of_files_that_exist():
    assert Counter((ROOT / name).exists() for name in ALLOWED)[False] == 0
