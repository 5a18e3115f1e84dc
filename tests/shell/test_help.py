"""The help pages: examples that work, the page made of them, and completion in a real shell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.test_house import unknown
from oomguard.cli.help_pages import EXAMPLES, help_pages
from oomguard.cli.main import COMMANDS, cli, main

ROOT = Path(__file__).parents[2]


def test_every_command_has_examples_and_shows_them(capsys):
    assert EXAMPLES.keys() == COMMANDS.keys()
    for name, examples in EXAMPLES.items():
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(f"    {typed}\n" in shown for typed, _ in examples)


@pytest.mark.parametrize("typed", [typed for each in EXAMPLES.values() for typed, _ in each])
def test_an_example_parses(typed):
    command = typed.split("| ")[-1]
    assert command.split()[:1] == ["oomguard"]
    assert unknown(command) is None


def test_the_page_shows_what_help_prints():
    written = (ROOT / "docs" / "commands.md").read_text().split("do not edit below -->\n")[1]
    assert written == help_pages(cli) + "\n", "run: make commands-page"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("oomguard lau", {"launch"}),
        ("oomguard launch --gpu", {"--gpu-memory"}),
        ("oomguard report --format ht", {"html"}),
    ],
)
def test_bash_completes_commands_options_and_values(tmp_path, words, expected):
    oomguard = tmp_path / "oomguard"
    oomguard.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m oomguard "$@"\n')
    oomguard.chmod(0o755)
    script = (
        f'eval "$({oomguard} completion bash)"; COMP_WORDS=({words}); '
        f"COMP_CWORD={len(words.split()) - 1}; _oomguard_completion {oomguard}; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ended = subprocess.run(
        [shutil.which("bash") or "bash", "-c", script], capture_output=True, text=True, check=True
    )
    assert set(ended.stdout.split()) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_asks_oomguard(shell, capsys):
    assert main(["completion", shell]) == 0
    assert f"_OOMGUARD_COMPLETE={shell}_complete" in capsys.readouterr().out
