"""What a newcomer relies on: names are unique, the core does no I/O, every shown command parses."""

from __future__ import annotations

import ast
import re
import shlex
from collections import defaultdict
from pathlib import Path

import click
import pytest

from oomguard.adapters.registry import ADAPTERS
from oomguard.cli.main import COMMANDS, cli

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "oomguard"
SOURCES = sorted(SRC.rglob("*.py"))

# --- Names ---


def duplicates(names: list[tuple[str, Path]]) -> dict[str, list[str]]:
    places = defaultdict(list)
    for name, path in names:
        places[name].append(str(path.relative_to(SRC)))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_modules_share_a_name():
    names = [(p.stem, p) for p in SOURCES if p.stem not in ("__init__", "__main__")]
    assert duplicates(names) == {}


def test_no_two_classes_share_a_name():
    names = [
        (node.name, path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert duplicates(names) == {}


# --- Frameworks ---

#: Names that are also those of a family of models and of a method.
ALSO_OTHERWISE = {"qwen", "loftq", "peft_loftq"}


def names_of_frameworks() -> set[str]:
    """Return the names and titles of all adapters, as one word each; no commands in brackets."""
    titles = {adapter.name: adapter.title.partition(" (")[0] for adapter in ADAPTERS}
    words = {word for name, title in titles.items() for word in (name, *title.split())}
    words |= {re.sub(r"\W", "", word) for word in words}
    common = {"Hugging", "Face", "Trainer", "script", "PEFT", "with", "HuggingFace"}
    kept = {word.lower() for word in words if word not in common and word.isidentifier()}
    return kept - ALSO_OTHERWISE


def test_the_names_are_those_of_the_frameworks():
    expected = {"llamafactory", "litgpt", "torchtune", "trl", "axolotl", "ms_swift", "hf_trainer"}
    assert expected <= names_of_frameworks()


@pytest.mark.parametrize("package", ["estimate", "predict", "tracer"])
def test_predictions_name_no_framework(package):
    """What they need to know about a framework its adapter states as fields."""
    names = re.compile("|".join(names_of_frameworks()), re.IGNORECASE)
    named = [
        f"{path.relative_to(SRC)}:{number}: {line.strip()}"
        for path in sorted((SRC / package).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if names.search(line.replace("-", ""))
    ]
    assert named == []


# --- Files ---

#: These run by themselves, without oomguard's modules.
ALONE = ("monitor", "tracer", "watchdog.py", "present.py")


def test_what_is_at_a_path_is_asked_where_not_being_allowed_is_no_error():
    """`Path.exists()` raises in a folder that may not be entered: `present.exists` does not."""
    raising = {"exists", "is_file", "is_dir", "expanduser", "home"}
    found = [
        f"{path.relative_to(SRC)}:{node.lineno}"
        for path in SOURCES
        if not set(path.relative_to(SRC).parts) & set(ALONE)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in raising and not node.args
    ]
    assert found == []


# --- Purity ---

CONTRACT = next(
    one
    for one in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    if one["name"].startswith("The core is pure")
)
#: Calls that read or write; a method of this name on anything but a path is not used in the core.
IO_CALLS = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "unlink", "rmdir",
    "iterdir", "glob", "rglob", "exists", "is_file", "is_dir", "stat", "touch", "rename",
    "resolve", "samefile", "symlink_to", "scandir", "listdir", "is_folder", "is_hidden", "expanded",
}  # fmt: skip
IO_MODULES = {"socket", "subprocess", "shutil", "tempfile", "sqlite3", "io", "glob", "fcntl"}


def pure_files() -> list[Path]:
    paths = [SRC.parent.joinpath(*name.split(".")) for name in CONTRACT["source_modules"]]
    return [
        file
        for path in paths
        for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")])
    ]


def input_output(path: Path) -> list[str]:
    rows = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in IO_CALLS:
                rows.append(f"{path.relative_to(SRC)}:{node.lineno} calls {name}()")
        imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            imported = [node.module or ""]
        rows += [
            f"{path.relative_to(SRC)}:{node.lineno} imports {name}"
            for name in imported
            if name.split(".")[0] in IO_MODULES
        ]
    return rows


def test_the_core_reads_and_writes_nothing():
    assert len(pure_files()) > 50
    rows = [row for path in pure_files() for row in input_output(path)]
    assert rows == []


#: Packages that talk to the user, and what runs in other processes.
OUTSIDE = {"cli", "monitor", "tracer"}
#: Modules that only pass on to what is not pure, and to what.
PASSING_ON = {
    "__main__": "the command line",
    "predict/forecast": "the tracer",
    "predict/replay": "the tracer",
    "predict/card_answers": "forecasts",
}
IMPURE = {*CONTRACT["forbidden_modules"], "os", "threading"}


def imported(path: Path) -> set[str]:
    """Return the first names of all that a module imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_the_purity_contract_leaves_no_pure_module_out():
    rest = [
        path
        for path in sorted(SRC.rglob("*.py"))
        if path not in pure_files()
        and path.name != "__init__.py"
        and path.relative_to(SRC).parts[0] not in OUTSIDE
    ]
    pure = [path for path in rest if not input_output(path) and not imported(path) & IMPURE]
    assert {str(path.relative_to(SRC).with_suffix("")) for path in pure} == set(PASSING_ON)


# --- Commands ---

#: Placeholders of prose, and what stands for them here.
PLACEHOLDERS = {"...", "[...]", "…"}


def shown_commands(text: str) -> list[str]:
    """Return each `oomguard ...` in backticks, and each line of a block or comment that runs it."""
    inline = re.findall(r"`+(oomguard [^`]+?)`+", text)
    lines = re.findall(
        r"^(?:\$ |#? {2,})(oomguard [a-z]+ .+)$", text.replace("\\\n", " "), re.MULTILINE
    )
    return inline + [line.split("   #")[0] for line in lines]


def all_commands() -> set[tuple[str, str]]:
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "recipes").rglob("*.yaml"),
        *(ROOT / "recipes").rglob("*.py"),
    ]
    texts = [(path, path.read_text()) for path in pages]
    for path in [*SOURCES, *(ROOT / "strategies").glob("*.py")]:
        # Backticks only: in code, a line beside them is seldom a command.
        found = re.findall(r"`(oomguard [^`\n]+)`", path.read_text())
        texts += [(path, "\n".join(f"`{one}`" for one in found))]
    return {
        (str(path.relative_to(ROOT)), one) for path, text in texts for one in shown_commands(text)
    }


def unknown(command: str) -> str | None:
    """Return what is wrong with a command: no such subcommand, or no such option of it."""
    try:
        words = shlex.split(re.sub(r"\$\([^)]*\)|\{[^}]*\}", "X", command), comments=True)[1:]
    except ValueError:
        return None  # a sentence with an apostrophe
    if not words or words[0].startswith(("-", "{", "<", ".")) or words[0] in PLACEHOLDERS:
        return None
    if words[0] not in COMMANDS:
        return f"no command {words[0]}" if re.fullmatch(r"[a-z-]+", words[0]) else None
    sub = cli.get_command(click.Context(cli), words[0])
    assert sub is not None
    options = {name for one in sub.params for name in [*one.opts, *one.secondary_opts]}
    options |= {"--help", "-h"}
    mine = words[1 : words.index("--")] if "--" in words else words[1:]
    wrong = [
        word
        for word in mine
        if word.startswith("--") and word.strip("[]().,").split("=")[0] not in options
    ]
    return f"no option {wrong[0]} of {words[0]}" if wrong else None


#: File and command still to be fixed; this may only shrink.
LIARS: set[tuple[str, str]] = set()


def test_every_shown_command_parses():
    shown = all_commands()
    assert len(shown) > 20
    wrong = {(where, one) for where, one in shown if unknown(one)}
    assert wrong - LIARS == set()


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("oomguard ladder --files", True),
        ("oomguard lader", True),
        ("oomguard launch train.yaml --probe", False),
        ("oomguard launch -- train --no-such-flag", False),
    ],
)
def test_a_command_with_an_option_that_does_not_exist_is_found(command, wrong):
    assert bool(unknown(command)) is wrong
