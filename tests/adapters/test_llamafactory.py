from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oomguard.adapters.llamafactory import LlamaFactory
from oomguard.errors import ConfigError
from oomguard.job.plan import (
    Allocator,
    EmbeddingRows,
    LossKernel,
    Offload,
    Overlong,
    Part,
    Plan,
    Precision,
    Quantization,
    Sharding,
    Tuning,
)
from oomguard.job.stored_format import StoredFormat
from oomguard.job.training_job import Device, Job, World

CLI = "llamafactory-cli train train.yaml"
TEXT = """\
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct

### method
stage: sft
finetuning_type: lora
lora_rank: 8

### train
per_device_train_batch_size: 16  # as large as it goes
gradient_accumulation_steps: 1
output_dir: saves/llama3
bf16: true
"""
VISION = "model_name_or_path: Qwen/Qwen2.5-VL-7B-Instruct\ntemplate: qwen2_vl\nbf16: true\n"
EMPTY = "model_name_or_path: m\n"


@pytest.fixture
def read(bench: Callable[..., Any]) -> Callable[..., Job]:
    def reader(text: str = TEXT, argv: str = CLI, **surroundings: Any) -> Job:
        return bench(LlamaFactory(), **surroundings).job(argv, text)

    return reader


def test_the_defaults_are_llamafactorys(read: Callable[..., Job]) -> None:
    job = read(EMPTY)
    assert job.asked == Plan(
        micro_batch=8,
        accumulation=1,
        overlong=Overlong.CUT,
        sequence_length=2048,
        checkpointing=True,
        precision=Precision.FP32,
        quantization=Quantization.NONE,
        tuning=Tuning.LORA,
        lora_rank=8,
        sharding=Sharding.NONE,
        offload=frozenset(),
        optimizer="adamw_torch",
        loss_kernel=LossKernel.EAGER,
        low_cpu_mem_usage=True,
        loader_workers=0,
        pin_memory=True,
        allocator=Allocator.DEFAULT,
        eval_batch=8,
        eval_accumulation=0,
        prediction_loss_only=False,
        auto_find_batch_size=False,
    )
    assert (job.multimodal, job.world, job.device) == (False, World(), Device.CUDA)
    assert job.output_dir == "/home/me/project/trainer_output"


def test_the_file_and_the_words_after_it_are_read(read: Callable[..., Job]) -> None:
    job = read(argv=f"{CLI} per_device_train_batch_size=4 cutoff_len=512 bf16=false")
    assert (job.asked.micro_batch, job.asked.sequence_length) == (4, 512)
    assert job.asked.precision is Precision.FP32
    assert job.output_dir == "/home/me/project/saves/llama3"


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("pure_bf16: true", "precision", Precision.BF16_TRUE),
        ("fp16: true", "precision", Precision.FP16_MIXED),
        ("quantization_bit: 4", "quantization", Quantization.NF4_DOUBLE),
        ("quantization_bit: 8", "quantization", Quantization.INT8),
        ("quantization_bit: 4\ndouble_quantization: no", "quantization", Quantization.NF4),
        ("quantization_bit: 4\nquantization_type: fp4", "quantization", Quantization.FP4_DOUBLE),
        ("quantization_bit: 4\nquantization_method: hqq", "quantization", None),
        ("disable_gradient_checkpointing: true", "checkpointing", False),
        ("finetuning_type: full", "lora_rank", None),
        ("finetuning_type: freeze", "tuning", Tuning.PARTIAL),
        ("tokenized_path: cache", "sequence_length", None),
        ("enable_liger_kernel: true", "loss_kernel", LossKernel.FUSED),
        ("auto_find_batch_size: true", "auto_find_batch_size", True),
        ("low_cpu_mem_usage: false", "low_cpu_mem_usage", False),
        ("fsdp: full_shard", "sharding", Sharding.FSDP),
        ("deepspeed: gone.json", "sharding", None),
        ("deepspeed: {zero_optimization: {stage: 2}}", "sharding", Sharding.ZERO2),
        ('deepspeed: \'{"zero_optimization": {"stage": 1}}\'', "sharding", Sharding.ZERO1),
        ("deepspeed: '{broken'", "sharding", None),
        (
            "deepspeed: {zero_optimization: {stage: 2, cpu_offload: true}}",
            "offload",
            frozenset({Offload.OPTIMIZER}),
        ),
    ],
)
def test_a_key_is_read_into_its_field(
    read: Callable[..., Job], line: str, field: str, value: object
) -> None:
    assert getattr(read(EMPTY + line + "\n").asked, field) == value


def test_the_parts_of_a_multimodal_model_can_be_frozen(read: Callable[..., Job]) -> None:
    job = read(VISION + "freeze_vision_tower: false\n")
    assert job.multimodal
    assert job.asked.frozen == frozenset({Part.PROJECTOR})
    assert job.asked.image_pixels == 768 * 768
    text_only = read()
    assert (text_only.asked.frozen, text_only.asked.image_pixels) == (None, None)
    hears = read("model_name_or_path: Qwen/Qwen2-Audio-7B-Instruct\ntemplate: qwen2_audio\n")
    assert (hears.multimodal, hears.asked.image_pixels) == (True, None)
    assert hears.asked.video_pixels is None
    assert hears.asked.frozen == frozenset({Part.PROJECTOR, Part.VISION_TOWER})


@pytest.mark.parametrize(
    ("name", "trainer"), [("USE_MCA", "Megatron Core"), ("USE_V1", "LLaMA-Factory's v1 trainer")]
)
def test_a_variable_that_starts_another_trainer_is_refused_by_name(
    read: Callable[..., Job], name: str, trainer: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name} starts .*{trainer}"):
        read(env={name: "1"})
    assert read(env={name: "0"}).asked == read().asked


@pytest.mark.parametrize(
    ("gpus", "env", "world", "device"),
    [
        (0, {}, World(), Device.CPU),
        (1, {}, World(), Device.CUDA),
        (4, {}, World(per_node=4), Device.CUDA),
        (4, {"NPROC_PER_NODE": "2", "NNODES": "2"}, World(nodes=2, per_node=2), Device.CUDA),
        (4, {"USE_RAY": "1"}, World(), Device.CUDA),
        (1, {"NPROC_PER_NODE": "2", "NNODES": "2"}, World(), Device.CUDA),
        (1, {"FORCE_TORCHRUN": "1"}, World(), Device.CUDA),
        (0, {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}, World(per_node=2), Device.CPU),
        (0, {"NPROC_PER_NODE": "2"}, World(), Device.CPU),
    ],
)
def test_the_cli_starts_torchrun_for_several_gpus_or_when_forced(
    read: Callable[..., Job], gpus: int, env: dict[str, str], world: World, device: Device
) -> None:
    job = read(gpus=gpus, env=env)
    assert (job.world, job.device) == (world, device)
    assert job.global_batch == 16 * world.size


def test_a_launcher_of_ones_own_is_read(read: Callable[..., Job]) -> None:
    job = read(argv="torchrun --nproc_per_node 2 src/train.py train.yaml", gpus=2)
    assert job.world == World(per_node=2)
    assert job.asked.allocator is Allocator.DEFAULT  # the CLI alone sets it
    config = {"/home/me/project/fsdp.yaml": "num_processes: 2\n"}
    argv = "accelerate launch --config_file fsdp.yaml src/train.py train.yaml"
    assert read(argv=argv, gpus=4, files=config).world == World(per_node=2)


@pytest.mark.parametrize(
    ("gpus", "env", "allocator"),
    [
        (1, {}, Allocator.DEFAULT),
        (2, {}, Allocator.EXPANDABLE),
        (2, {"OPTIM_TORCH": "0"}, Allocator.DEFAULT),
        (1, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, Allocator.EXPANDABLE),
        (0, {}, None),
    ],
)
def test_torchrun_turns_expandable_segments_on(
    read: Callable[..., Job], gpus: int, env: dict[str, str], allocator: Allocator | None
) -> None:
    assert read(gpus=gpus, env=env).asked.allocator is allocator


@pytest.mark.parametrize("gpus", [0, 1, 2])
@pytest.mark.parametrize("env", [{}, {"FORCE_TORCHRUN": "1"}, {"NPROC_PER_NODE": "1"}])
@pytest.mark.parametrize(
    "argv", [CLI, f"{CLI} cutoff_len=9", "python -m llamafactory.cli train train.yaml"]
)
def test_what_was_asked_is_written_as_the_user_wrote_it(
    bench: Callable[..., Any], folder: str, gpus: int, env: dict[str, str], argv: str
) -> None:
    table = bench(LlamaFactory(), gpus=gpus, env=env)
    job = table.job(argv, TEXT)
    command = table.adapter.write(job, job.asked, folder)
    assert command.argv == tuple(argv.replace("train.yaml", f"{folder}/train.yaml").split())
    assert [(file.path, file.text) for file in command.files] == [(f"{folder}/train.yaml", TEXT)]
    assert (command.cwd, command.env, command.config) == (job.cwd, env, f"{folder}/train.yaml")


def test_only_the_lines_of_the_plan_change(bench: Callable[..., Any], folder: str) -> None:
    table = bench(LlamaFactory())
    job = table.job(CLI, TEXT)
    plan = replace(job.asked, micro_batch=8, accumulation=2, sequence_length=1024)
    text = table.adapter.write(job, plan, folder).files[-1].text
    expected = TEXT.replace("size: 16 ", "size: 8 ").replace("steps: 1", "steps: 2")
    assert text == expected + "cutoff_len: 1024\n"


def test_an_override_on_the_command_line_is_edited_there(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(LlamaFactory())
    job = table.job(f"{CLI} per_device_train_batch_size=4", TEXT)
    command = table.adapter.write(job, replace(job.asked, micro_batch=2, accumulation=2), folder)
    assert command.argv[-1] == "per_device_train_batch_size=2"
    assert command.files[-1].text == TEXT.replace("steps: 1", "steps: 2")


def test_flags_without_a_file(bench: Callable[..., Any], folder: str) -> None:
    table = bench(LlamaFactory())
    argv = "lmf train --model_name_or_path m --per_device_train_batch_size 4 --bf16"
    job = table.job(argv)
    assert (job.asked.micro_batch, job.config) == (4, None)
    command = table.adapter.write(job, replace(job.asked, micro_batch=2, accumulation=2), folder)
    edited = argv.replace("size 4", "size 2") + " --gradient_accumulation_steps 2"
    assert command.argv == tuple(edited.split())
    assert (command.files, command.config) == ((), None)


def test_qlora_is_spelled_out(bench: Callable[..., Any], folder: str) -> None:
    table = bench(LlamaFactory())
    job = table.job(CLI, TEXT)
    plan = replace(job.asked, quantization=Quantization.NF4)
    text = table.adapter.write(job, plan, folder).files[-1].text
    assert text == TEXT + "quantization_bit: 4\ndouble_quantization: false\n"


def test_a_changed_rank_keeps_the_alpha_that_followed_it(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(LlamaFactory())
    job = table.job(CLI, TEXT)
    text = table.adapter.write(job, replace(job.asked, lora_rank=4), folder).files[-1].text
    assert "lora_rank: 4\n" in text
    assert text.endswith("lora_alpha: 16\n")


@pytest.mark.parametrize(
    ("gpus", "env"),
    [
        (1, {"FORCE_TORCHRUN": "1"}),
        (0, {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "1"}),
    ],
)
def test_zero3_brings_its_file_and_torchrun(
    bench: Callable[..., Any], folder: str, gpus: int, env: dict[str, str]
) -> None:
    table = bench(LlamaFactory(), gpus=gpus)
    job = table.job(CLI, TEXT)
    offload = frozenset({Offload.OPTIMIZER, Offload.PARAMETERS})
    plan = replace(job.asked, sharding=Sharding.ZERO3, offload=offload)
    command = table.adapter.write(job, plan, folder)
    zero = command.files[0]
    assert json.loads(zero.text)["zero_optimization"]["stage"] == 3
    assert command.files[-1].text == TEXT + f"deepspeed: {zero.path}\n"
    assert {name: command.env[name] for name in env} == env
    assert table.reread(job, command).asked == plan
    assert table.adapter.required_packages(job, plan) == {"deepspeed"}


def test_torchrun_brings_no_allocator_that_was_not_asked_for(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(LlamaFactory())
    job = table.job(CLI, TEXT)
    command = table.adapter.write(job, replace(job.asked, sharding=Sharding.ZERO3), folder)
    assert command.env["OPTIM_TORCH"] == "0"


def test_a_deepspeed_file_is_asked_for_and_read(bench: Callable[..., Any]) -> None:
    text, path = TEXT + "deepspeed: ds/z2.json\n", "/home/me/project/ds/z2.json"
    config = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    table = bench(LlamaFactory(), files={path: json.dumps(config)})
    assert table.adapter.referenced_files(table.request(CLI, text)) == (path,)
    asked = table.job(CLI, text).asked
    assert (asked.sharding, asked.offload) == (Sharding.ZERO2, frozenset({Offload.OPTIMIZER}))


def test_a_new_batch_frees_a_batch_that_the_deepspeed_file_fixes(
    bench: Callable[..., Any], folder: str
) -> None:
    path = "/home/me/project/z2.json"
    text = '{"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 2}}'
    table = bench(LlamaFactory(), files={path: text})
    job = table.job("lmf train train.yaml", "model_name_or_path: m\ndeepspeed: z2.json\n")
    assert table.adapter.write(job, job.asked, folder).files[0].path == f"{folder}/train.yaml"
    command = table.adapter.write(job, replace(job.asked, micro_batch=4, accumulation=2), folder)
    assert command.files[0].text == text.replace("4", '"auto"')
    assert f"deepspeed: {command.files[0].path}\n" in command.files[1].text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('per_device_train_batch_size: "abc"', "must be an integer of at least 1, not 'abc'"),
        ("per_device_train_batch_size: 0", "at least 1, not 0"),
        ("per_device_train_batch_size: -2", "must be an integer of at least 1, not -2"),
        ("per_device_train_batch_size: 2.5", "must be an integer of at least 1, not 2.5"),
        ("per_device_train_batch_size: true", "must be an integer of at least 1, not true"),
        ("gradient_accumulation_steps: auto", "must be an integer of at least 1, not 'auto'"),
        ("cutoff_len: 1e3", "must be an integer of at least 1, not '1e3'"),
        ("bf16: perhaps", "must be true or false, not 'perhaps'"),
        ("bf16: 1", "must be true or false, not 1"),
        ("output_dir: [a]", "must be a string"),
    ],
)
def test_a_wrong_value_is_named_with_line_and_key(
    read: Callable[..., Job], line: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"# head\n{EMPTY}{line}\n")
    assert message in str(caught.value)
    key = line.split(":", maxsplit=1)[0]
    assert str(caught.value.where) == f"/home/me/project/train.yaml:3, key '{key}'"


def test_a_wrong_override_is_named_as_such(read: Callable[..., Job]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(argv=f"{CLI} cutoff_len=long")
    assert str(caught.value.where) == "command line, key 'cutoff_len'"


def test_a_wrong_variable_is_named(read: Callable[..., Job]) -> None:
    with pytest.raises(ConfigError, match="NPROC_PER_NODE is 'gpu'"):
        read(gpus=2, env={"NPROC_PER_NODE": "gpu"})


def test_json_configs_fail_in_llamafactory_itself(bench: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="'PosixPath' object has no attribute 'read'"):
        bench(LlamaFactory()).job("llamafactory-cli train x.json", "{}", name="x.json")


ZERO3 = {"sharding": Sharding.ZERO3}
NF4 = {"quantization": Quantization.NF4}


@pytest.mark.parametrize(
    ("lines", "change", "message"),
    [
        ("finetuning_type: full", NF4, "only compatible with the LoRA or OFT method"),
        ("finetuning_type: freeze", NF4, "only compatible with the LoRA or OFT method"),
        ("resize_vocab: true", NF4, "Cannot resize embedding layers of a quantized model"),
        ("add_tokens: <a>,<b>", NF4, "Cannot resize embedding layers of a quantized model"),
        ("add_special_tokens: <a>", NF4, "Cannot resize embedding layers of a quantized model"),
        ("new_special_tokens_config: x.yaml", NF4, "Cannot resize embedding layers"),
        ("pissa_init: true", NF4, "scripts/pissa_init.py to initialize PiSSA for a quantized"),
        ("fp8: true", NF4, "FP8 training is not compatible with quantization"),
        (
            "adapter_name_or_path: a\ncreate_new_adapter: true",
            NF4,
            "Cannot create new adapter upon a quantized model",
        ),
        ("adapter_name_or_path: a,b", NF4, "Quantized model only accepts a single adapter"),
        ("quantization_bit: 8", ZERO3, "Only 4-bit quantized model can use fsdp+qlora"),
        ("fsdp: full_shard", {"quantization": Quantization.INT8}, "Only 4-bit quantized model"),
        ("quantization_bit: 4\nquantization_method: hqq", ZERO3, "HQQ and EETQ quantization"),
        ("pure_bf16: true", ZERO3, "`pure_bf16` is incompatible with DeepSpeed ZeRO-3"),
        ("use_unsloth: true", ZERO3, "Unsloth is incompatible with DeepSpeed ZeRO-3"),
        ("use_kt: true", ZERO3, "KTransformers is incompatible with DeepSpeed ZeRO-3"),
        ("predict_with_generate: true", ZERO3, "`predict_with_generate` is incompatible"),
        ("pissa_init: true", ZERO3, "initialize PiSSA in DeepSpeed ZeRO-3"),
        (
            "finetuning_type: full\nuse_galore: true",
            {"sharding": Sharding.ZERO2},
            "GaLore and APOLLO are incompatible with DeepSpeed",
        ),
        (
            "finetuning_type: full\nuse_badam: true",
            {"tuning": Tuning.LORA},
            "Cannot use LoRA with GaLore, APOLLO or BAdam together",
        ),
        ("adapter_name_or_path: a", {"tuning": Tuning.FULL}, "Adapter is only valid for the LoRA"),
        (
            "template: qwen2_vl\nimage_min_pixels: 1024",
            {"image_pixels": 512},
            "`image_max_pixels` cannot be smaller than `image_min_pixels`",
        ),
        (
            "template: qwen2_vl\nvideo_min_pixels: 1024",
            {"video_pixels": 512},
            "`video_max_pixels` cannot be smaller than `video_min_pixels`",
        ),
        (
            "use_cpu: true",
            {"precision": Precision.BF16_TRUE},
            "This device does not support `pure_bf16`.",
        ),
        (
            "add_tokens: a,b",
            {"embedding_rows": EmbeddingRows.NEW},
            "has no setting for PEFT's trainable_token_indices",
        ),
        ("adapter_name_or_path: a", {"lora_rank": 4}, "The LoRA rank is that of the adapter"),
        (
            "metric_for_best_model: rouge",
            {"prediction_loss_only": True},
            "`metric_for_best_model` training argument is set to a metric that is not found",
        ),
        (
            "",
            {**ZERO3, "low_cpu_mem_usage": False},
            "low_cpu_mem_usage is switched off by LLaMA-Factory itself",
        ),
        ("deepspeed: gone.json", ZERO3, "DeepSpeed file was not found"),
        ("fsdp: full_shard", ZERO3, "FSDP is neither switched on nor off"),
        ("", {"offload": frozenset({Offload.OPTIMIZER})}, "offload needs DeepSpeed"),
        ("", {**ZERO3, "offload": frozenset({Offload.ACTIVATIONS})}, "offloads activations"),
        (
            "",
            {"sharding": Sharding.ZERO2, "offload": frozenset({Offload.PARAMETERS})},
            "offloaded by ZeRO-3 alone",
        ),
        ("", {"frozen": frozenset(Part)}, "no setting for frozen"),
        (
            "",
            {"quantization": Quantization.PREQUANTIZED},
            "for quantization 'prequantized'",
        ),
        ("", {"image_pixels": 512}, "no setting for image_pixels 512"),
        ("", {"precision": Precision.FP16_TRUE}, "no setting for precision 'fp16-true'"),
    ],
)
def test_a_refused_plan_is_refused_in_llamafactorys_words(
    read: Callable[..., Job], lines: str, change: dict[str, Any], message: str
) -> None:
    job = read(f"{EMPTY}{lines}\n")
    assert LlamaFactory().refusal(job, job.asked) is None
    assert message in (LlamaFactory().refusal(job, replace(job.asked, **change)) or "")


def test_a_quantized_checkpoint_and_zero3_are_refused(read: Callable[..., Job]) -> None:
    awq = StoredFormat(method="awq", described="awq", quantization=Quantization.PREQUANTIZED)
    job = LlamaFactory().of_model(read(), "llama", awq)
    why = LlamaFactory().refusal(job, replace(job.asked, **ZERO3))
    assert why == "DeepSpeed ZeRO-3 or FSDP is incompatible with PTQ-quantized models."


def test_deepspeed_without_a_launcher_is_refused(read: Callable[..., Job]) -> None:
    job = read(argv="python src/train.py train.yaml")
    why = LlamaFactory().refusal(job, replace(job.asked, **ZERO3))
    assert why == "Please use `FORCE_TORCHRUN=1` to launch DeepSpeed training."


def test_what_a_plan_needs(read: Callable[..., Job]) -> None:
    adapter, job = LlamaFactory(), read()
    assert adapter.required_packages(job, job.asked) == frozenset()
    assert adapter.required_packages(job, replace(job.asked, **NF4)) == {"bitsandbytes"}
    assert adapter.required_packages(job, replace(job.asked, optimizer="paged_adamw_8bit")) == {
        "bitsandbytes"
    }
    assert adapter.required_packages(job, replace(job.asked, loss_kernel=LossKernel.FUSED)) == {
        "liger_kernel"
    }
    quantized = read(EMPTY + "quantization_bit: 4\n")
    assert adapter.required_packages(quantized, quantized.asked) == frozenset()


@pytest.mark.parametrize(
    ("argv", "config"),
    [
        ("llamafactory-cli train x.yaml a=1", "x.yaml"),
        ("/opt/env/bin/lmf train x.yml", "x.yml"),
        ("python -m llamafactory.cli train x.yaml", "x.yaml"),
        ("python src/train.py x.yaml", "x.yaml"),
        ("llamafactory-cli train --stage sft", None),
        ("python src/train_bash.py --stage sft", None),
        ("torchrun --nproc_per_node 2 src/train.py --stage sft --template qwen2_vl", None),
        ("deepspeed --num_gpus 4 run.py --template qwen --cutoff_len 8", None),
        ("python src/train_sft.py --finetuning_type lora", None),
    ],
)
def test_its_commands_are_recognised(argv: str, config: str | None) -> None:
    words = tuple(argv.split())
    assert LlamaFactory().recognizes_command(words)
    assert LlamaFactory().config_path(words) == config


@pytest.mark.parametrize(
    "argv",
    [
        *("llamafactory-cli chat x.yaml", "python train.py", "litgpt"),
        "python src/train.py --stage 2 --model_name_or_path m",
    ],
)
def test_other_commands_are_not(argv: str) -> None:
    words = tuple(argv.split())
    assert not LlamaFactory().recognizes_command(words)
    assert LlamaFactory().config_path(words) is None


def test_a_bare_file_is_started_by_the_cli(bench: Callable[..., Any]) -> None:
    source = bench(LlamaFactory()).request(CLI, TEXT).source
    command = LlamaFactory().command_for(source, {}, ())
    assert command == ("llamafactory-cli", "train", "/home/me/project/train.yaml")
    own = LlamaFactory().command_for(source, {}, ("lmf", "train"))
    assert own == ("lmf", "train", "/home/me/project/train.yaml")


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("", ()),
        ("add_tokens: a,b", ("embed_tokens", "lm_head")),
        ("add_special_tokens: <a>", ("embed_tokens", "lm_head")),
        ("resize_vocab: true", ("embed_tokens", "lm_head")),
        ("resize_vocab: true\nadditional_target: embed_tokens,norm", ("embed_tokens",)),
        ("additional_target: norm", ()),
        ("add_tokens: a,b\nfinetuning_type: full", ()),
    ],
)
def test_the_embeddings_that_new_tokens_make_it_train_are_named(
    read: Callable[..., Job], lines: str, names: tuple[str, ...]
) -> None:
    job = read(f"{EMPTY}{lines}\n")
    assert job.trained_embeddings == names
    assert job.asked.embedding_rows is (EmbeddingRows.ALL if names else None)


def test_a_full_job_that_becomes_lora_is_read_back_with_what_comes_with_lora(
    bench: Callable[..., Any], folder: str
) -> None:
    table = bench(LlamaFactory())
    job = table.job(CLI, f"{EMPTY}finetuning_type: full\nadd_tokens: a,b\nlora_rank: 32\n")
    plan = LlamaFactory().normalize(job, replace(job.asked, tuning=Tuning.LORA))
    assert (plan.lora_rank, plan.embedding_rows) == (32, EmbeddingRows.ALL)
    assert LlamaFactory().refusal(job, plan) is None
    again = table.reread(job, LlamaFactory().write(job, plan, folder))
    assert again.asked == plan


@pytest.mark.parametrize("loss", ["use_dft_loss", "use_eaft_loss"])
def test_a_loss_from_logits_is_not_fused(read: Callable[..., Job], loss: str) -> None:
    liger = "enable_liger_kernel: true\n"
    for lines, kernel in (
        (liger, LossKernel.FUSED),
        (f"{liger}{loss}: true\n", LossKernel.EAGER),
        (f"{liger}{loss}: true\nstage: pt\n", LossKernel.FUSED),  # which never reads it
    ):
        assert read(f"{EMPTY}{lines}").asked.loss_kernel is kernel
    job = read(f"{EMPTY}{loss}: true\n")
    refused = LlamaFactory().refusal(job, replace(job.asked, loss_kernel=LossKernel.FUSED))
    assert refused is not None


@pytest.mark.parametrize(
    ("argv", "length"),
    [
        ("python src/train_bash.py --stage sft", 1024),
        ("python src/train_bash.py --stage sft --cutoff_len 512", 512),
        ("python src/train.py --stage sft --finetuning_type lora", 2048),
    ],
)
def test_a_script_with_flags_has_llamafactorys_defaults(
    bench: Callable[..., Any], folder: str, argv: str, length: int
) -> None:
    table = bench(LlamaFactory())
    job = table.job(f"{argv} --model_name_or_path m --dataset d --template qwen")
    asked = job.asked
    assert (asked.tuning, asked.lora_rank, asked.sequence_length) == (Tuning.LORA, 8, length)
    command = table.adapter.write(job, replace(asked, sequence_length=256), folder)
    assert "--cutoff_len 256" in " ".join(command.argv)
    assert table.reread(job, command).asked.sequence_length == 256
