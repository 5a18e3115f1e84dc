"""What the README shows is true: its strategy loads, its tables and links name what is there."""

from __future__ import annotations

import re
from pathlib import Path

from oomguard.cli.main import COMMANDS
from oomguard.cli.options import declared
from oomguard.ladder.climb import CLASSIC
from oomguard.ladder.load import load_strategies

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_strategy_it_shows_loads(tmp_path):
    (text,) = blocks("python")
    (tmp_path / "198_cut_to_1024.py").write_text(text)
    ladder = load_strategies(tmp_path)
    shorter = next(s for s in ladder if s.id == "cut_to_1024")
    ids = [s.id for s in ladder]
    assert ids.index("chunk_long_texts") < ids.index(shorter.id) < ids.index("cut_cutoff_len")
    assert shorter.remedies
    assert not shorter.preflight
    assert shorter.summary == "train on 1024 tokens"


def test_the_classic_table_is_the_classic_ladder():
    section = README.split("`--ladder classic`")[1]
    rows = re.findall(r"^\| (\w+) \| ([\w ]+) \|", section, re.MULTILINE)[1:]
    fidelity = {s.id: s.fidelity.value.replace("_", " ") for s in load_strategies()}
    assert [name for name, _ in rows] == list(CLASSIC)
    assert dict(rows) == {name: fidelity[name] for name in CLASSIC}


def test_the_options_of_the_block_exist():
    (text,) = blocks("yaml")
    keys = re.findall(r"^  (\w+):", text, re.MULTILINE)
    assert keys
    assert set(keys) <= {one.key for one in declared().values()}


def test_the_commands_are_all_of_them():
    assert set(re.findall(r"^\| `oomguard (\w+)", README, re.MULTILINE)) == set(COMMANDS)


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_term_of_the_glossary_is_used():
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    terms = re.findall(r"^\| \*\*(.+?)\*\* \|", glossary, re.MULTILINE)
    assert len(terms) > 30
    pages = [page for page in (ROOT / "docs").glob("*.md") if page.name != "glossary.md"]
    texts = [README, *(page.read_text() for page in pages)]
    texts += [path.read_text() for path in (ROOT / "src" / "oomguard" / "cli").glob("*.py")]
    used = "\n".join(texts).lower()
    unused = [part for term in terms for part in term.lower().split(" / ") if part not in used]
    assert unused == []
