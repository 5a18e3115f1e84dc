"""`oomguard plan --ci`: a line, an exit code, and annotations where GitHub reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oomguard.cli.main import main
from shapes import LLAMA_YAML

RECIPES = Path(__file__).parents[2] / "recipes"
FITS, USAGE, DOES_NOT_FIT, NOT_CERTAIN = 0, 2, 5, 6


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path, arithmetic):
    """Be on a machine that is no runner of GitHub's."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ci(capsys, tmp_path):
    def run(text: str, memory: str, *words: str) -> tuple[int, list[str]]:
        (tmp_path / "train.yaml").write_text(text)
        code = main(["plan", "train.yaml", "--gpu-memory", memory, "--ci", *words])
        return code, capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize(
    ("memory", "code", "words"),
    [
        ("141GiB", FITS, "train.yaml: fits: "),
        ("50GiB", NOT_CERTAIN, "train.yaml: is not certain to fit: "),
        ("24GiB", DOES_NOT_FIT, "train.yaml: does not fit: "),
    ],
)
def test_the_exit_code_is_the_verdict(ci, memory, code, words):
    found, lines = ci(LLAMA_YAML, memory)
    assert found == code
    (line,) = lines
    assert line.startswith(words)
    assert "51.89 GiB expected (35.99 GiB to 66.71 GiB, analytic)" in line
    assert ("it fits with" in line) == (code != FITS)


def test_what_is_not_modelled_does_not_pass(ci):
    code, (line,) = ci(LLAMA_YAML + "mixture_of_depths: convert\n", "1TiB")
    assert code == NOT_CERTAIN
    assert line.endswith("; the estimate leaves out mixture_of_depths")


def test_what_the_framework_refuses_does_not_pass(ci):
    recipe = (RECIPES / "llamafactory" / "qwen2_audio.yaml").read_text()
    code, (line,) = ci(recipe + "quantization_bit: 4\n", "1TiB")
    assert code == NOT_CERTAIN
    assert "LLaMA-Factory rejects it: Cannot resize embedding layers" in line


def test_a_wrong_config_is_a_usage_error_and_no_verdict(ci, capsys):
    assert ci(LLAMA_YAML + "oomguard:\n  no_such: 1\n", "24GiB") == (USAGE, [])
    assert main(["plan", "train.yaml", "--ci"]) == USAGE


def test_on_github_the_verdict_is_on_the_line_that_the_first_fit_changes(ci, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    code, (line, error) = ci(LLAMA_YAML, "24GiB")
    assert code == DOES_NOT_FIT
    number = LLAMA_YAML.splitlines().index("per_device_train_batch_size: 8") + 1
    assert error.startswith(f"::error file=train.yaml,line={number},title=oomguard plan::does not")
    assert error.split("::", 2)[2] == line.removeprefix("train.yaml: ")
    assert ci(LLAMA_YAML, "141GiB")[1][1:] == []


def test_on_github_a_file_is_named_from_the_root_of_the_repository(ci, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path.parent))
    _, (line, error) = ci(LLAMA_YAML, "24GiB")
    assert line.startswith("train.yaml: does not fit")
    assert error.startswith(f"::error file={tmp_path.name}/train.yaml,line=")


def test_on_github_a_setting_that_is_not_modelled_is_warned_of_on_its_line(ci, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    text = LLAMA_YAML + "mixture_of_depths: convert\n"
    code, (_, verdict, warning) = ci(text, "1TiB")
    assert code == NOT_CERTAIN
    assert verdict.startswith("::warning file=train.yaml,title=oomguard plan::is not certain")
    number = len(text.splitlines())
    begin = f"::warning file=train.yaml,line={number},title=oomguard plan::the estimate leaves out"
    assert warning.startswith(begin)


def test_no_text_ends_an_annotation_early(ci, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    name = "a,b%c.yaml"
    (tmp_path / name).write_text(LLAMA_YAML)
    assert main(["plan", name, "--gpu-memory", "24GiB", "--ci"]) == DOES_NOT_FIT
    assert "::error file=a%2Cb%25c.yaml,line=" in capsys.readouterr().out


def test_with_json_the_document_is_that_of_a_plan_and_annotations_are_elsewhere(
    ci, monkeypatch, capsys
):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    code, lines = ci(LLAMA_YAML, "24GiB", "--json")
    assert code == DOES_NOT_FIT
    assert json.loads("\n".join(lines))["asked"]["fits"] == "no"


def test_a_command_without_a_config_has_a_verdict_without_a_line(capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    words = ["litgpt", "finetune_lora", "checkpoints/meta-llama/Meta-Llama-3-8B"]
    assert main(["plan", "--gpu", "t4", "--ci", "--", *words]) == DOES_NOT_FIT
    line, error = capsys.readouterr().out.splitlines()
    assert line.startswith("litgpt: does not fit")
    assert error.startswith("::error title=oomguard plan::does not fit")


def test_two_questions_at_once_are_refused(ci, capsys):
    assert ci(LLAMA_YAML, "24GiB", "--max", "micro_batch")[0] == USAGE
