from __future__ import annotations

import pytest

from oomguard.adapters import registry
from oomguard.adapters.contract import Claim, Marks
from oomguard.adapters.litgpt import LitGPT
from oomguard.adapters.registry import ADAPTERS, adapter_named, detect, detect_command
from oomguard.errors import FrameworkError


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ({"model_name_or_path": "m", "finetuning_type": "lora", "output_dir": "o"}, "llamafactory"),
        ({"model_name_or_path": "m", "dataset": "d"}, "llamafactory"),
        ({"checkpoint_dir": "c"}, "litgpt"),
        ({"train": {"micro_batch_size": 1}, "precision": "bf16-true"}, "litgpt"),
        ({"output_dir": "o", "max_steps": 3}, "hf_trainer"),
    ],
)
def test_a_config_belongs_to_one_framework(document: dict[str, object], name: str) -> None:
    assert detect(document).name == name


def test_the_files_own_command_decides() -> None:
    document = {"model_name_or_path": "m", "finetuning_type": "lora"}
    assert detect(document, ("python", "train.py")).name == "hf_trainer"


def test_an_ambiguous_config_names_the_candidates() -> None:
    document = {"model_name_or_path": "m", "output_dir": "o"}
    with pytest.raises(FrameworkError, match="more than one framework matches") as caught:
        detect(document, file="/x/train.yaml")
    assert "LLaMA-Factory, Hugging Face Trainer script" in caught.value.what
    assert caught.value.next_step == "Choose one with --framework: llamafactory, hf_trainer."
    assert str(caught.value.where) == "/x/train.yaml"


def test_an_unknown_config_names_all() -> None:
    with pytest.raises(FrameworkError, match="not recognised as a training job") as caught:
        detect({"a": 1})
    assert caught.value.where is None
    assert caught.value.next_step.startswith("If it is, choose it with --framework: llamafactory,")


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ("llamafactory-cli train x.yaml", "llamafactory"),
        ("python src/train.py x.yaml", "llamafactory"),
        ("litgpt finetune_lora --config x.yaml", "litgpt"),
        ("torchrun train.py --bf16", "hf_trainer"),
        ("python src/train.py --bf16", "hf_trainer"),
        ("python src/train.py --stage sft --finetuning_type lora", "llamafactory"),
    ],
)
def test_a_command_belongs_to_one_framework(argv: str, name: str) -> None:
    assert detect_command(tuple(argv.split())).name == name


def test_an_unknown_command_is_named() -> None:
    with pytest.raises(FrameworkError, match="not recognised as a training job") as caught:
        detect_command(("bash", "train.sh", "x"))
    assert str(caught.value.where) == "command line, key 'bash train.sh'"


def test_an_adapter_is_found_by_its_name() -> None:
    assert [adapter_named(adapter.name) for adapter in ADAPTERS] == list(ADAPTERS)
    with pytest.raises(FrameworkError, match="no framework is called 'llama-factory'") as caught:
        adapter_named("llama-factory")
    assert caught.value.next_step.startswith("Did you mean 'llamafactory'?")


class Toy(LitGPT):
    """A framework that nothing else names; its config looks like the Trainer's otherwise."""

    name = "toy"
    title = "Toy"
    marks = Marks(own=frozenset({"toy_steps"}))
    python_packages = ("toy_train",)

    def recognizes_command(self, argv: tuple[str, ...]) -> Claim:
        own = argv[1:2] == ("toy.py",) or argv[1:] == ("-m", "toy_train")
        return Claim.OWN if own else Claim.NO


@pytest.mark.parametrize("first", [True, False])
def test_a_new_adapter_is_recognized_before_the_general_one(
    first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = (Toy(), *ADAPTERS) if first else (*ADAPTERS, Toy())
    monkeypatch.setattr(registry, "ADAPTERS", together)
    assert detect({"output_dir": "o", "max_steps": 3, "toy_steps": 1}).name == "toy"
    assert detect({"output_dir": "o", "max_steps": 3}).name == "hf_trainer"
    assert detect_command(("python", "toy.py", "--bf16")).name == "toy"
    assert detect_command(("python", "-m", "toy_train")).name == "toy"
    with pytest.raises(FrameworkError, match="not recognised as a training job"):
        detect_command(("python", "-m", "toy_train.serve"))


def test_two_frameworks_with_their_own_marks_on_one_file_are_an_error_that_names_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "ADAPTERS", (*ADAPTERS, Toy()))
    with pytest.raises(FrameworkError, match="more than one framework matches") as caught:
        detect({"model_name_or_path": "m", "finetuning_type": "lora", "toy_steps": 1}, file="/x/t")
    assert "LLaMA-Factory, Toy" in caught.value.what
    assert caught.value.next_step == "Choose one with --framework: llamafactory, toy."


def test_the_marks_of_two_frameworks_meet_in_no_sample() -> None:
    documents: list[dict[str, object]] = [
        {"model_name_or_path": "m", "template": "t", "dataset": "d", "output_dir": "o"},
        {"model": "m", "dataset": "d", "template": "t", "output_dir": "o"},
        {"base_model": "m", "datasets": [], "load_in_4bit": True, "output_dir": "o"},
        {"model": {"_component_": "c"}, "dataset": {"packed": True}, "output_dir": "o"},
        {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"},
        {"checkpoint_dir": "c", "data": "Alpaca"},
    ]
    owners = [
        [adapter.name for adapter in ADAPTERS if adapter.recognizes(document) is Claim.OWN]
        for document in documents
    ]
    assert owners == [
        ["llamafactory"],
        ["ms_swift"],
        ["axolotl"],
        ["torchtune"],
        ["trl"],
        ["litgpt"],
    ]
