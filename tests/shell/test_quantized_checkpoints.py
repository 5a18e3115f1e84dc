"""How a checkpoint is stored is read from its config.json; the catalogue's says nothing of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from oomguard.catalogue.checkpoint_formats import named_format, stored_format
from oomguard.catalogue.lookup import Model, find_model
from oomguard.catalogue.shipped import transformers_config
from oomguard.cli.main import main
from oomguard.job.memory_settings import Family
from oomguard.job.plan import Quantization

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
BNB = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
MODEL = "Qwen/Qwen2.5-0.5B"
JOBS = {
    "llamafactory": "model_name_or_path: {model}\ndo_train: true\nfinetuning_type: lora\n"
    "lora_target: all\ndataset: mine\ntemplate: qwen\ncutoff_len: 512\nbf16: true\noutput_dir: o\n",
    "axolotl": "base_model: {model}\nlora_o_kernel: false\nadapter: lora\nlora_r: 8\n"
    "lora_target_modules: [q_proj]\ndatasets: [{{path: mine, type: alpaca}}]\nsequence_len: 512\n"
    "micro_batch_size: 1\nbf16: true\n"
    "output_dir: o\n",
    "trl": "model_name_or_path: {model}\ndataset_name: mine\nmax_length: 512\nbf16: true\n"
    "use_peft: true\noutput_dir: o\n",
    "ms_swift": "swift sft --model {model} --tuner_type lora --torch_dtype bfloat16 --dataset d",
    "script": "python train.py --model_name_or_path {model} --bf16 --lora_r 8 "
    "--per_device_train_batch_size 8 --max_length 512 "
    "--output_dir o",
}


def own(config: Mapping[str, object], name: str = "folder") -> Model:
    return Model(name=name, family=Family.HF, config=config, source="config.json")


@pytest.mark.parametrize(
    ("config", "quantization"),
    [
        (AWQ, Quantization.PREQUANTIZED),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 128}, Quantization.PREQUANTIZED),
        (GPTQ, Quantization.PREQUANTIZED),
        ({**GPTQ, "group_size": 32}, None),
        ({**GPTQ, "bits": 8}, None),
        ({**AWQ, "modules_to_not_convert": ["lm_head"]}, Quantization.PREQUANTIZED),
        ({**AWQ, "modules_to_not_convert": ["mlp.down_proj"]}, None),
        (BNB, Quantization.NF4_DOUBLE),
        ({**BNB, "bnb_4bit_use_double_quant": False}, Quantization.NF4),
        ({"load_in_4bit": True}, Quantization.FP4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Quantization.INT8),
        ({**BNB, "llm_int8_skip_modules": ["lm_head", "merger"]}, Quantization.NF4_DOUBLE),
        ({**BNB, "llm_int8_skip_modules": ["model.layers.0.self_attn"]}, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, None),
        ({"quant_method": "mxfp4"}, None),
        ({"quant_method": "hqq"}, None),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, None),
        ({"quant_method": "something-new"}, None),
    ],
)
def test_a_config_says_how_its_checkpoint_is_stored(
    config: dict[str, object], quantization: Quantization | None
) -> None:
    found = stored_format(own({"model_type": "qwen2", "quantization_config": config}))
    assert found is not None
    assert found.quantization is quantization
    assert found.described


def test_what_is_stored_is_found_under_other_keys_too() -> None:
    multimodal = own({"text_config": {"quantization_config": BNB}})
    assert stored_format(multimodal).quantization is Quantization.NF4_DOUBLE
    before = own({"compression_config": {"quant_method": "compressed-tensors"}})
    assert stored_format(before).method == "compressed-tensors"


def test_a_tower_that_keeps_16_bits_is_not_counted_in_four() -> None:
    kept = {**AWQ, "modules_to_not_convert": ["visual"]}
    sees = own({"vision_config": {"depth": 32}, "quantization_config": kept})
    assert stored_format(sees).quantization is None
    assert stored_format(own({"quantization_config": kept})).quantization is not None


def test_the_contents_decide_over_the_name() -> None:
    assert stored_format(own({"model_type": "qwen2"}, name="models/merged-from-AWQ")) is None


@pytest.mark.parametrize(
    ("name", "is_quantized", "quantization"),
    [
        (MODEL, False, None),
        (f"{MODEL}-Instruct-AWQ", True, Quantization.PREQUANTIZED),
        (f"{MODEL}-Instruct-GPTQ-Int4", True, Quantization.PREQUANTIZED),
        (f"{MODEL}-Instruct-GPTQ-Int8", True, None),
        (f"{MODEL}-bnb-4bit", True, Quantization.NF4),
        (f"{MODEL}-unsloth-bnb-4bit", True, None),
        (f"{MODEL}-FP8", True, None),
        ("Qwen/Qwen2.5-VL-7B-Instruct-AWQ", True, None),
    ],
)
def test_the_name_decides_where_only_the_base_model_is_known(
    tmp_path: Path, name: str, is_quantized: bool, quantization: Quantization | None
) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    found = stored_format(find_model(name, Family.HF, cwd=tmp_path, environment=offline))
    assert (found is not None) is is_quantized
    assert (found.quantization if found else None) is quantization


def test_a_name_tells_where_nothing_else_is_known() -> None:
    assert named_format("someone/unheard-of-awq").quantization is Quantization.PREQUANTIZED
    assert named_format("someone/unheard-of") is None


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = transformers_config(MODEL).config

    def run(job: str, stored: Mapping[str, object] | None, folder: str = "models/mine") -> dict:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        config = {**base, **({"quantization_config": stored} if stored else {})}
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        text = job.format(model=folder)
        words = ["--", *text.split()]
        if "\n" in text:
            (tmp_path / "train.yaml").write_text(text)
            words = ["train.yaml"]
        assert main(["plan", "--gpu", "a100-80", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
@pytest.mark.parametrize(
    ("stored", "quantization"), [(AWQ, "prequantized"), (BNB, "nf4-double")], ids=["awq", "bnb"]
)
def test_a_folder_of_any_name_is_counted_as_stored(plan, job, stored, quantization):
    plain, document = (plan(job, one)["asked"] for one in (None, stored))
    assert document["plan"]["quantization"] == quantization
    # 358 million of 494 million numbers stand in matrices of the layers; the rest keeps 16 bits
    # (32 in TRL, which loads weights in fp32).
    spared = plain["estimate"]["terms"]["weights"] - document["estimate"]["terms"]["weights"]
    assert spared >= 0.99 * 357_826_560 * (2 - 0.5195)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_format_without_a_size_is_named_and_never_a_yes(plan, job):
    document = plan(job, {"quant_method": "compressed-tensors", "format": "pack-quantized"})
    (found,) = [one for one in document["unmodelled"] if one["key"] == "model"]
    assert "compressed-tensors" in found["effect"]
    assert (document["asked"]["fits"], found["direction"]) == ("unsure", "either")


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_checkpoint_in_16_bits_is_not_quantized_by_its_folders_name(plan, job):
    document = plan(job, None, "models/was-AWQ-once")
    assert document["asked"]["plan"]["quantization"] in ("none", None)
    assert document["unmodelled"] == []


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_no_strategy_quantizes_a_quantized_checkpoint_again(plan, job):
    document = plan(job, AWQ)
    for strategy in document["rungs"]:
        if strategy["plan"] is not None:
            assert strategy["plan"]["quantization"] == "prequantized"


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_llamafactory_loads_these_in_16_bits(plan, method):
    document = plan(JOBS["llamafactory"], {"quant_method": method})
    assert document["unmodelled"] == []
    assert document["asked"]["plan"]["quantization"] == "none"


def test_a_quantized_checkpoint_is_not_trained_in_full(plan):
    whole = JOBS["llamafactory"].replace("type: lora", "type: full")
    assert any("LoRA or OFT" in note for note in plan(whole, AWQ)["notes"])
    trl = JOBS["trl"].replace("use_peft: true\n", "use_peft: false\n")
    assert any("purely quantized" in note for note in plan(trl, AWQ)["notes"])
