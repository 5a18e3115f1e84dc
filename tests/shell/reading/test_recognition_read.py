"""A job is read as what its framework starts, or refused for the true reason."""

from __future__ import annotations

import pytest

from oomguard.cli.main import main
from oomguard.units import GIB
from shell.reading_jobs import ADAMW, AXOLOTL, LF, SCRIPT, SWIFT, TORCHTUNE, TRL, TRL_COMMAND


def test_a_script_without_an_adapters_flags_trains_everything(plan):
    job = SCRIPT.format("train.py").replace("Qwen/Qwen2.5-0.5B", "meta-llama/Llama-2-7b-hf")
    document = plan(job)
    assert document["asked"]["plan"]["tuning"] == "full"
    assert document["asked"]["estimate"]["expected_bytes"] > 16 * 6.7e9
    assert plan(job + " --lora_r 8")["asked"]["plan"]["tuning"] == "lora"


def test_litgpt_shards_full_tuning_over_several_gpus(plan, tmp_path):
    (tmp_path / "full.yaml").write_text(
        "checkpoint_dir: checkpoints/meta-llama/Meta-Llama-3-8B\nprecision: bf16-true\n"
        "devices: 4\ntrain: {global_batch_size: 64, micro_batch_size: 1, max_seq_length: 512}\n"
    )
    document = plan("litgpt finetune_full --config full.yaml", "--gpus", "4")
    asked = document["asked"]
    assert (asked["plan"]["sharding"], asked["plan"]["checkpointing"]) == ("fsdp", True)
    assert asked["estimate"]["expected_bytes"] < 40 * GIB


def test_the_model_of_ms_swift_is_not_the_name_of_its_bot(plan):
    job = SWIFT.replace("Qwen2.5-0.5B", "Qwen2.5-7B-Instruct") + " --model_name Qwen2.5-0.5B"
    assert plan(job)["model"] == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model_name_or_path: a/b\ntemplate: qwen\nexport_dir: merged\n", "does not train"),
        ("model_name_or_path: a/b\ntemplate: qwen\ninfer_backend: vllm\n", "does not train"),
        ("model_name_or_path: a/b\ntemplate: qwen\ndo_predict: true\n", "does not train"),
        ("model: a/b\nmodel_class: llm\npeft_config: {name: lora}\n", "v1 format"),
        (TORCHTUNE + "tasks: [truthfulqa_mc2]\n", "it has no optimizer"),
    ],
)
def test_what_does_not_train_is_refused(refused, text, reason):
    assert reason in refused(text)


@pytest.mark.parametrize(
    ("extra", "method"),
    [
        ("reward_funcs: [accuracy]\n", "grpo and rloo"),
        ("num_generations: 8\n", "grpo and rloo"),
        ("beta: 0.1\n", "dpo and kto"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "launch"])
def test_a_trl_config_of_another_method_is_never_started_as_sft(refused, extra, method, command):
    assert f"is a setting of trl {method}, not of trl sft" in refused(TRL + extra, command)


@pytest.mark.parametrize(
    ("job", "key", "guess"),
    [
        (LF.replace("cutoff_len", "cutof_len"), "cutof_len", "cutoff_len"),
        (TRL.replace("max_length", "max_seq_length"), "max_seq_length", "max_length"),
        (AXOLOTL.replace("micro_batch_", "micro_batch"), "micro_batchsize", "micro_batch_size"),
        (LF + "per_device_train_batchsize: 4\n", "per_device_train_batchsize",
         "per_device_train_batch_size"),
    ],
)  # fmt: skip
def test_a_misspelled_setting_is_named_with_a_guess(plan, job, key, guess):
    document = plan(job)
    (found,) = document["unmodelled"]
    assert found["key"] == key
    assert f"Did you mean '{guess}'?" in found["effect"]
    assert job.splitlines()[found["line"] - 1].startswith(key)
    assert document["asked"]["fits"] == "unsure"


def test_a_setting_that_resembles_none_is_only_noted(plan):
    document = plan(LF + "zzz: 1\n")
    assert document["unmodelled"] == []
    assert document["asked"]["fits"] == "yes"
    assert "LLaMA-Factory has no setting zzz" in document["notes"]


@pytest.mark.parametrize(
    "command",
    [
        "trl distillation --dataset_name d", "swift rollout --model m",
        "swift infer --model m",
        "llamafactory-cli export x.yaml",
        "axolotl inference x.yaml", "litgpt chat m", "tune ls",
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["plan", "launch"])
def test_an_unsupported_command_of_a_known_framework_is_refused_as_that(capsys, command, verb):
    options = ["--gpu", "a100-80"] if verb == "plan" else []
    assert main([verb, *options, "--", *command.split()]) == 2
    said = capsys.readouterr().err
    assert "cannot run this command" in said
    assert " ".join(command.split()[:2]) in said
    assert "not recognised as a training job" not in said


@pytest.mark.parametrize(
    ("command", "title"),
    [
        ("python3 -m verl.trainer.main_ppo data.train_batch_size=256", "verl"),
        ("deepspeed --module openrlhf.cli.train_dpo --pretrain m", "OpenRLHF"),
        ("torchrun finetuning.py --enable_fsdp --model_name m --use_peft", "Llama Cookbook"),
        ("python finetuning.py --model_name m --batch_size_training=2", "Llama Cookbook"),
        ("torchrun --nproc_per_node=2 -m torchtitan.train --job.config_file a.toml", "torchtitan"),
        ("python my_unsloth_run.py", "Unsloth"),
        ("accelerate launch sdxl_train_network.py --network_module n", "kohya-ss sd-scripts"),
        ("accelerate launch train_dreambooth_lora.py --instance_prompt x", "diffusers"),
        ("torchrun pretrain_gpt.py --micro-batch-size 4", "Megatron-LM"),
        ("megatron sft --model m", "Megatron-SWIFT"),
        ("deepspeed training/step1_supervised_finetuning/main.py --zero_stage 2", "DeepSpeed-Chat"),
        ("composer train/train.py a.yaml", "Composer"),
        ("xtuner train a.py", "XTuner"),
    ],
)
def test_a_framework_without_an_adapter_is_named(capsys, command, title):
    assert main(["plan", "--gpu", "a100-80", "--", *command.split()]) == 2
    said = capsys.readouterr().err
    assert f"this is a job of {title}" in said
    assert "does not support" in said


def test_a_config_of_a_framework_without_an_adapter_is_named(refused):
    text = "model: {name: mpt}\nmax_duration: 1ep\ntrain_loader: {dataset: {}}\n"
    assert "this is a job of Composer" in refused(text)
    assert "this is a job of verl" in refused("actor_rollout_ref: {model: {path: a/b}}\n")


LITGPT = """
checkpoint_dir: checkpoints/meta-llama/Meta-Llama-3-8B
precision: bf16-true
train: {global_batch_size: 16, micro_batch_size: 1, max_seq_length: 512}
"""


def test_a_litgpt_config_that_can_resume_is_full_fine_tuning(plan):
    # litgpt 0.5.13: of the fine-tuning commands only finetune/full.py has `resume`.
    document = plan(LITGPT + "resume: false\n")
    assert document["trained"]["what"] == "full fine-tuning"


def test_a_litgpt_optimizer_without_known_states_is_named(plan):
    document = plan(LITGPT + "resume: false\noptimizer: {class_path: my.own.Optimizer}\n")
    assert [one["key"] for one in document["unmodelled"]] == ["optimizer"]
    assert plan(LITGPT + "resume: false\noptimizer: SGD\n")["unmodelled"] == []


def test_a_litgpt_config_that_several_commands_take_is_pointed_to_full_fine_tuning(refused):
    said = refused(LITGPT)
    assert "does not say which LitGPT command" in said
    assert "{command: [litgpt, finetune_full]}" in said


def test_a_litgpt_config_for_pretraining_is_refused_as_that(refused):
    text = (
        "model_name: pythia-14m\nout_dir: out\nprecision: bf16-mixed\n"
        "tokenizer_dir: t\ntrain: {global_batch_size: 8, micro_batch_size: 4, max_tokens: 100}\n"
    )
    said = refused(text)
    assert "config of litgpt pretrain" in said
    assert "finetune_lora]" not in said


AUDIO = """
model_name_or_path: Qwen/Qwen2-Audio-7B-Instruct
do_train: true
finetuning_type: lora
dataset: mine
template: qwen2_audio
cutoff_len: 2048
bf16: true
per_device_train_batch_size: 4
output_dir: out
"""


def test_a_fused_loss_is_no_strategy_for_a_model_that_liger_does_not_patch(plan):
    # llamafactory 0.9.5, liger_kernel.py: it warns and changes nothing for qwen2_audio
    document = plan(AUDIO)
    (rung,) = [one for one in document["rungs"] if one["strategy"] == "fused_loss"]
    assert "Current model does not support liger kernel." in rung["skipped"]
    (rung,) = [one for one in plan(LF)["rungs"] if one["strategy"] == "fused_loss"]
    assert rung["skipped"] is None


def test_a_fused_loss_that_a_model_does_not_get_is_counted_as_a_plain_one(plan):
    plain, switched = plan(AUDIO), plan(AUDIO + "enable_liger_kernel: true\n")
    assert switched["asked"]["plan"]["loss_kernel"] == "eager"
    assert switched["asked"]["estimate"] == plain["asked"]["estimate"]
    reward = plan(LF + "stage: rm\nenable_liger_kernel: true\n")
    assert reward["asked"]["plan"]["loss_kernel"] == "eager"
    assert plan(LF + "enable_liger_kernel: true\n")["asked"]["plan"]["loss_kernel"] == "fused"


CHAT = """
model_name_or_path: Qwen/Qwen2.5-1.5B
max_length: 512
bf16: true
per_device_train_batch_size: 4
output_dir: out
"""


def test_a_script_reads_the_file_that_its_config_flag_names(plan, tmp_path):
    # trl/scripts/utils.py, TrlParser: the file's keys are the script's arguments.
    (tmp_path / "sft.yaml").write_text(CHAT)
    document = plan("accelerate launch --num_processes 1 scripts/sft.py --config sft.yaml")
    asked = document["asked"]["plan"]
    assert document["model"] == "Qwen/Qwen2.5-1.5B"
    assert (asked["micro_batch"], asked["sequence_length"], asked["tuning"]) == (4, 512, "full")


def test_a_config_flag_of_another_kind_is_not_read_as_the_trainers(refused, capsys, tmp_path):
    (tmp_path / "own.yaml").write_text("model: Qwen/Qwen2.5-0.5B\nbatch: 3\n")
    command = ["plan", "--gpu", "a100-80", "--", "python", "train.py", "--config", "own.yaml"]
    assert main(command) == 2
    assert "names no model" in capsys.readouterr().err


def test_a_config_with_a_dataset_mixture_is_a_scripts(refused):
    said = refused(CHAT + "dataset_mixture: {datasets: [{id: mine}]}\n")
    assert "does not say which script it is for" in said
    assert "LLaMA-Factory" not in said


def test_a_script_without_a_length_takes_no_more_tokens_than_the_model(plan):
    # GPT-2 has 1024 learned positions.
    document = plan("python run_clm.py --model_name_or_path openai-community/gpt2 --output_dir o")
    assert "the sequence length is not known: 1024 tokens are assumed" in document["notes"]


@pytest.mark.parametrize(
    ("flags", "quantization", "tuning"),
    [
        ("--use_peft_lora True --use_4bit_quantization True --use_nested_quant True",
         "nf4-double", "lora"),
        ("--use_peft_lora True --use_8bit_quantization True", "int8", "lora"),
        ("--use_peft_lora False --lora_r 8", None, "full"),
    ],
)  # fmt: skip
def test_pefts_own_training_script_names_quantization_its_own_way(
    plan, flags, quantization, tuning
):
    # peft, examples/sft/train.py, ModelArguments
    asked = plan(SCRIPT.format("train.py") + " " + flags)["asked"]["plan"]
    assert (asked["quantization"], asked["tuning"]) == (quantization, tuning)


@pytest.mark.parametrize(
    ("script", "method"),
    [
        ("gold.py", "distillation"),
        ("gspo.py", "grpo"),
        ("mpo_vlm.py", "dpo"),
        ("prm.py", "reward"),
        ("nash_md.py", None),
        ("online_dpo.py", None),
    ],
)
def test_the_method_of_trls_example_scripts_is_in_their_names(plan, script, method):
    assert plan(SCRIPT.format(f"examples/scripts/{script}"))["method"] == method


def test_ms_swift_loads_16_bits_where_no_dtype_is_stated(plan):
    # swift/model/utils.py, get_default_torch_dtype: the checkpoint's dtype, else bf16
    stated = plan(SWIFT)["asked"]["estimate"]["terms"]["weights"]
    assert (
        plan(SWIFT.replace(" --torch_dtype bfloat16", ""))["asked"]["estimate"]["terms"]["weights"]
        == stated
    )


@pytest.mark.parametrize("program", ["swift/cli/sft.py", "/src/ms-swift/swift/cli/pt.py"])
def test_ms_swift_is_recognised_by_the_file_of_its_command(plan, program):
    document = plan(SWIFT.replace("swift sft", f"torchrun --nproc_per_node=1 {program}"))
    assert document["framework"] == "ms_swift"


def test_a_config_that_the_framework_rejects_has_that_as_its_verdict(plan, capsys):
    # LLaMA-Factory 0.9.5, hparams/parser.py: new tokens on a 4-bit base.
    job = LF + "quantization_bit: 4\nresize_vocab: true\nadd_special_tokens: <|q|>,<|a|>\n"
    document = plan(job)
    rejected = document["rejected"]
    assert rejected["message"] == "Cannot resize embedding layers of a quantized model."
    assert document["asked"]["fits"] == "unsure"
    changes = {one["change"]: one["estimate"] for one in rejected["alternatives"]}
    assert list(changes) == ["without quantization", "without resize_vocab and add_special_tokens"]
    # The same plans as of configs that are written so from the start.
    for estimate, config in zip(changes.values(), (
        LF + "resize_vocab: true\nadd_special_tokens: <|q|>,<|a|>\n",
        LF + "quantization_bit: 4\n",
    ), strict=True):  # fmt: skip
        assert estimate["expected_bytes"] == plan(config)["asked"]["estimate"]["expected_bytes"]
    assert plan(LF)["rejected"] is None
    assert main(["plan", "--gpu", "a100-80", "train.yaml"]) == 0
    assert "rejects" not in capsys.readouterr().out


def test_the_verdict_on_a_rejected_config_names_the_ways_around_it(capsys, tmp_path):
    (tmp_path / "train.yaml").write_text(LF + "quantization_bit: 4\nresize_vocab: true\n")
    assert main(["plan", "--gpu", "a100-80", "train.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "LLaMA-Factory rejects the requested config: Cannot resize" in shown
    assert "without quantization it fits" in shown
    assert "without resize_vocab it fits" in shown
    assert "The requested config" not in shown


@pytest.mark.parametrize(
    "key",
    ["fsdp_cpu_offload: false", "# tune run --nproc_per_node 2 full_finetune_distributed --config"],
)
def test_a_torchtune_file_for_several_gpus_is_the_job_that_tune_run_starts(plan, tmp_path, key):
    # torchtune 0.6.1: only recipes/*_distributed.py read fsdp_cpu_offload.
    text = TORCHTUNE.replace("lora_llama3_2_1b", "llama3_2_1b").replace(
        "  lora_attn_modules: [q_proj, v_proj]\n  lora_rank: 8\n", ""
    ) + ADAMW + key + "\n"  # fmt: skip
    (tmp_path / "own.yaml").write_text(text)
    command = "tune run --nproc_per_node 2 full_finetune_distributed --config own.yaml"
    asked = plan(text, "--gpus", "2")["asked"]
    assert asked["plan"]["sharding"] == "fsdp"
    assert asked == plan(command, "--gpus", "2")["asked"]


@pytest.mark.parametrize(
    ("model", "tuning"), [("lora_llama3_2_1b", "lora"), ("llama3_2_1b", "full")]
)
def test_fake_quantization_in_torchtune_is_named(plan, model, tuning):
    text = TORCHTUNE.replace("lora_llama3_2_1b", model) + ADAMW
    document = plan(text + "quantizer: {_component_: torchtune.training.quantization.Q}\n")
    assert [one["key"] for one in document["unmodelled"]] == ["quantizer"]
    assert (document["method"], document["asked"]["plan"]["tuning"]) == ("sft", tuning)


def test_lora_of_ms_swift_goes_to_all_linear_layers(plan):
    # ms-swift 4.6.0, arguments/tuner_args.py: target_modules defaults to ['all-linear'].
    trained = plan(SWIFT)["trained"]
    assert trained == plan(SWIFT + " --target_modules all-linear")["trained"]
    assert "all linear layers" in trained["what"]
    assert "on q_proj" in plan(SWIFT + " --target_modules q_proj")["trained"]["what"]


def test_unsloth_in_a_script_is_named(plan):
    document = plan(SCRIPT.format("train.py") + " --use_unsloth True")
    assert [one["key"] for one in document["unmodelled"]] == ["use_unsloth"]


def test_nothing_is_claimed_of_a_script_without_flags(capsys):
    assert main(["plan", "--gpu", "a100-80", "--", "python", "train.py"]) == 2
    said = capsys.readouterr()
    assert "the job names no model" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    "job",
    [
        SCRIPT.format("train.py") + " --lora_r 8 --lora_target_modules {}",
        TRL_COMMAND.format("trl sft") + " --use_peft --lora_target_modules {}",
        SWIFT + " --target_modules {}",
        TRL + "use_peft: true\nlora_target_modules: [{}]\n",
        LF.replace("lora_target: all", "lora_target: {}"),
        AXOLOTL.replace("[q_proj, v_proj]", "[{}]"),
    ],
)
def test_every_module_in_a_list_is_adapted(plan, job):
    separator = ", " if "\n" in job else " "
    both = plan(job.replace("{}", separator.join(["q_proj", "v_proj"])))["trained"]
    one = plan(job.replace("{}", "q_proj"))["trained"]
    assert "q_proj, v_proj" in both["what"]
    assert both["parameters"] > one["parameters"]


@pytest.mark.parametrize(
    ("job", "key"),
    [
        ("llamafactory-cli train train.yaml per_device_train_batchsize=4", "per_device_train_bat"),
        (f"{SWIFT} --per_device_train_batchsize 4", "per_device_train_batchsize"),
        (TRL_COMMAND.format("trl sft") + " --per_device_train_batch 4", "per_device_train_batch"),
    ],
)
def test_a_misspelled_flag_is_named_with_a_guess(plan, tmp_path, job, key):
    (tmp_path / "train.yaml").write_text(LF)
    document = plan(job)
    (found,) = [one for one in document["unmodelled"] if one["key"].startswith(key)]
    assert "Did you mean 'per_device_train_batch_size'?" in found["effect"]
    assert document["asked"]["fits"] == "unsure"
    assert not any("has no setting" in note for note in document["notes"])


def test_a_config_that_several_frameworks_share_keys_with_is_refused_as_what_it_is(refused):
    """Megatron-SWIFT's settings and swift sample's, beside some that swift sft has too."""
    text = "model: Qwen/Qwen2.5-0.5B\ndataset: d\ntuner_type: lora\n"
    assert "Megatron-SWIFT" in refused(f"{text}micro_batch_size: 1\nglobal_batch_size: 8\n")
    assert "swift sample" in refused(f"{text}sampler_engine: vllm\n")


def test_a_finetuning_type_that_llamafactory_does_not_have_is_its_own_rejection(plan):
    document = plan(LF.replace("type: lora", "type: loar"))
    assert document["rejected"]["message"] == "Invalid fine-tuning method."
    assert document["asked"]["fits"] != "yes"
