"""Every plan that the ladder can reach is one that the framework takes: it is not refused, it is
read back as it was written, and the global batch is the one asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generators import failures
from oomguard.adapters.contract import Adapter, Claim
from oomguard.adapters.registry import ADAPTERS, adapter_named, detect, detect_command
from oomguard.ladder.climb import Framework, Ladder
from oomguard.ladder.load import load_strategies

LF = "model_name_or_path: Qwen/Qwen2-VL-7B-Instruct\ntemplate: qwen2_vl\n"
TRL = "model_name_or_path: m\ndataset_name: d\n"
LIT = "checkpoint_dir: c\ntrain:\n  global_batch_size: 12\n  micro_batch_size: 4\nlora_r: 4\n"
AXO = "base_model: m\ndatasets: [{path: d, type: alpaca}]\nmicro_batch_size: 4\n"
SWIFT = "model: Qwen/Qwen2.5-VL-7B\ndataset: d\nper_device_train_batch_size: 4\n"
TUNE = "model: {_component_: torchtune.models.llama3.lora_llama3_8b}\nbatch_size: 4\n"
QWEN = "torchrun --nproc_per_node 2 finetune.py --lazy_preprocess True --data_path d"
LOFTQ = "python train.py --init_lora_weights loftq --loftq_bits 8 --staged False"


@dataclass(frozen=True)
class Sample:
    """A job as a user has it."""

    name: str
    argv: str
    text: str | None = None
    files: dict[str, str] = field(default_factory=dict)

    @property
    def adapter(self) -> Adapter:
        return adapter_named(self.name)


SAMPLES = {
    "lf-lora": Sample("llamafactory", "lmf train train.yaml", LF),
    "lf-new-tokens": Sample("llamafactory", "lmf train train.yaml", LF + "add_tokens: a,b\n"),
    "lf-full": Sample("llamafactory", "lmf train train.yaml", LF + "finetuning_type: full\n"),
    "lf-8-bit": Sample("llamafactory", "lmf train train.yaml", LF + "quantization_bit: 8\n"),
    "litgpt": Sample("litgpt", "litgpt finetune_lora --config train.yaml", LIT),
    "litgpt-full": Sample("litgpt", "litgpt finetune_full c --train.micro_batch_size 4"),
    "hf": Sample("hf_trainer", "torchrun --nproc_per_node 2 train.py --lora_r 4 --max_length 512"),
    "hf-quantized": Sample("hf_trainer", "python train.py --use_peft --load_in_4bit False"),
    "trl": Sample("trl", "trl sft --config train.yaml", TRL),
    "trl-lora": Sample("trl", "trl sft --config train.yaml --accelerate_config zero2", TRL),
    "qwen-base": Sample("qwen", f"{QWEN} --use_lora --bf16 True"),
    "qwen-chat": Sample("qwen", f"{QWEN} --use_lora --model_name_or_path a-Chat"),
    "qwen-gptq": Sample("qwen", f"{QWEN} --use_lora --q_lora --fp16 True"),
    "qwen-full": Sample("qwen", QWEN),
    "qwen-script": Sample("qwen", "bash finetune/finetune_lora_ds.sh -m m -d d"),
    "loftq": Sample("peft_loftq", LOFTQ),
    "axolotl": Sample("axolotl", "axolotl train train.yaml", AXO),
    "axolotl-lora": Sample("axolotl", "axolotl train train.yaml", AXO + "adapter: lora\n"),
    "torchtune": Sample(
        "torchtune", "tune run lora_finetune_single_device --config train.yaml", TUNE
    ),
    "swift": Sample("ms_swift", "swift sft train.yaml", SWIFT),
    "swift-full": Sample("ms_swift", "swift sft train.yaml", SWIFT + "tuner_type: full\n"),
}


def ladder_of(adapter: Adapter) -> Ladder:
    framework = Framework(
        normalize=adapter.normalize,
        refusal=adapter.refusal,
        required_packages=adapter.required_packages,
        resume_mode=adapter.resume_mode,
    )
    return Ladder(strategies=load_strategies(), framework=framework)


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_a_sample_belongs_to_one_framework(bench: Callable[..., Any], sample: Sample) -> None:
    argv = tuple(sample.argv.split())
    claims = [a.name for a in ADAPTERS if a.recognizes_command(argv) is Claim.OWN]
    assert claims == ([] if sample.name == "hf_trainer" else [sample.name])
    assert detect_command(argv).name == sample.name


@pytest.mark.parametrize(
    ("document", "command", "name"),
    [
        ({"model_name_or_path": "m", "dataset_name": "d"}, (), "trl"),
        ({"model_name_or_path": "m", "finetuning_type": "full"}, (), "llamafactory"),
        ({"base_model": "m", "datasets": [], "load_in_4bit": True}, (), "axolotl"),
        ({"model": "m", "dataset": "d", "output_dir": "o"}, (), "ms_swift"),
        ({"model": {"_component_": "c"}, "output_dir": "o"}, (), "torchtune"),
        ({"lazy_preprocess": True, "q_lora": True}, ("torchrun", "finetune.py"), "qwen"),
        ({"init_lora_weights": "loftq"}, ("python", "train.py"), "peft_loftq"),
        ({"max_length": 8}, ("python", "train.py"), "hf_trainer"),
    ],
)
def test_a_config_belongs_to_one_framework(
    document: dict[str, object], command: tuple[str, ...], name: str
) -> None:
    assert detect(document, command).name == name


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
@settings(
    deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(whys=st.lists(failures, min_size=1, max_size=30))
def test_no_plan_of_a_walk_is_refused(
    bench: Callable[..., Any], folder: str, sample: Sample, whys: list[Any]
) -> None:
    adapter = sample.adapter
    table = bench(adapter, gpus=2)
    job = table.job(sample.argv, sample.text)
    ladder = ladder_of(adapter)
    first, _ = ladder.prepare(job)
    tried, taken = [first], []
    for why in whys:
        rung = ladder.climb(job, tried, taken, why)
        if rung.plan is None or rung.step is None:
            continue
        assert adapter.refusal(job, rung.plan) is None
        command = adapter.write(job, rung.plan, folder)
        again = table.reread(job, command)
        assert again.asked == rung.plan
        assert again.global_batch == job.global_batch
        tried.append(rung.plan)
        taken.append(rung.step.strategy)
