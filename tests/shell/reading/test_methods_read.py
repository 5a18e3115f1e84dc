"""The method of a job, and what its loss takes, are read in every framework."""

from __future__ import annotations

import pytest

from oomguard.cli.main import main
from shell.reading_jobs import (
    ADAMW,
    AXOLOTL,
    DESCRIBED,
    LF,
    RLHF,
    SCRIPT,
    SWIFT,
    TORCHTUNE,
    TRL,
    TRL_COMMAND,
    UNMEASURED,
)


@pytest.mark.parametrize(
    ("job", "method"),
    [
        *((LF + f"stage: {stage}\n", name) for stage, name in (
            ("sft", "sft"), ("pt", "pretrain"), ("rm", "reward"), ("dpo", "dpo"), ("kto", "kto"),
            ("dpo\npref_loss: orpo", "orpo"), ("dpo\npref_loss: simpo", "simpo"),
        )),
        (AXOLOTL, "sft"),
        *((AXOLOTL + f"rl: {rl}\n", rl) for rl in ("dpo", "kto", "orpo", "simpo", "grpo")),
        (AXOLOTL + "rl: ipo\n", "dpo"),
        (AXOLOTL + "rl: gdpo\n", "grpo"),
        (AXOLOTL + "reward_model: true\n", "reward"),
        (AXOLOTL + "process_reward_model: true\n", "reward"),
        (TORCHTUNE + ADAMW, "sft"),
        (TORCHTUNE + ADAMW + "loss: {_component_: torchtune.rlhf.loss.DPOLoss}\n", "dpo"),
        (TRL, "sft"),
        (SWIFT, "sft"),
        (SWIFT + " --task_type seq_cls", "classification"),
        (SWIFT + " --num_labels 2", "classification"),
        (RLHF, "dpo"),
        *((f"{RLHF} --rlhf_type {kind}", name) for kind, name in (
            ("dpo", "dpo"), ("kto", "kto"), ("orpo", "orpo"), ("simpo", "simpo"), ("cpo", "cpo"),
            ("rm", "reward"), ("ppo", "ppo"), ("grpo", "grpo"), ("gkd", "distillation"),
            ("cpo --loss_type simpo", "simpo"),
        )),
        (SCRIPT.format("train.py"), "sft"),
        (SCRIPT.format("trl/scripts/dpo.py"), "dpo"),
        (TRL_COMMAND.format("trl dpo"), "dpo"),
        (TRL_COMMAND.format("trl reward"), "reward"),
        (TRL_COMMAND.format("torchrun --nproc-per-node 1 -m trl.scripts.dpo"), "dpo"),
        (TRL + "f_divergence_type: reverse_kl\n", "dpo"),
        (TRL + "center_rewards_coefficient: 0.1\n", "reward"),
        (SCRIPT.format("run_glue.py"), "classification"),
        (SCRIPT.format("my_grpo.py"), "grpo"),
        (SCRIPT.format("rloo_vlm.py") + " --num_generations 2", "rloo"),
        (SCRIPT.format("train.py") + " --reward_funcs accuracy", "grpo"),
    ],
)  # fmt: skip
def test_the_method_is_named_and_only_a_modelled_one_is_said_to_fit(plan, job, method):
    document = plan(job)
    assert document["method"] == method
    modelled = method in ("sft", "pretrain") or method in DESCRIBED.get(document["framework"], ())
    assert document["asked"]["fits"] == ("yes" if modelled else "unsure")
    missing = UNMEASURED.get((document["framework"], method), ["method"])
    assert [one["key"] for one in document["unmodelled"]] == ([] if modelled else missing)


@pytest.mark.parametrize("flags", ["--rpo_alpha 0.1", "--loss_type sigmoid sft", "--packing true"])
def test_a_loss_of_words_and_packs_take_no_more_than_whole_pairs(plan, flags):
    # ms-swift 4.6.0, rlhf_trainers/dpo_trainer.py: the mean of log-probabilities that are there.
    plain, found = (plan(f"{RLHF} --rlhf_type dpo {more}") for more in ("", flags))
    assert found["unmodelled"] == []
    assert found["asked"]["estimate"] == plain["asked"]["estimate"]


def test_pairs_without_padding_are_named_where_there_are_several(plan):
    named = [
        [one["key"] for one in plan(f"{RLHF} --padding_free true {more}")["unmodelled"]]
        for more in ("", "--per_device_train_batch_size 4")
    ]
    assert named == [[], ["padding_free"]]


def test_packs_of_other_methods_are_named(plan):
    (found,) = plan(f"{RLHF} --rlhf_type kto --packing true")["unmodelled"]
    assert found["key"] == "packing"


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ("--attn_impl flash_attn", None),
        ("--attn_impl flash_attention_3", None),
        ("--attn_impl flex_attention", "attn_impl"),
        ("--padding_free true", None),
        ("--padding_free true --per_device_train_batch_size 2", "padding_free"),
        ("--vit_gradient_checkpointing false", None),  # a frozen tower keeps nothing
        ("--freeze_vit false --vit_gradient_checkpointing true", None),
        ("--freeze_vit false --vit_gradient_checkpointing false", "vit_gradient_checkpointing"),
    ],
)
def test_what_ms_swift_reads_is_named_where_it_changes_what_is_counted(plan, flags, key):
    found = [one["key"] for one in plan(f"{SWIFT} {flags}")["unmodelled"]]
    assert found == ([key] if key else [])


def test_a_kernel_of_attention_is_read(plan):
    swift = f"{SWIFT} --max_length 8192 --gradient_checkpointing false"
    peaks = {
        name: plan(f"{swift} --attn_impl {name}")["asked"]["estimate"]["allocated_bytes"]
        for name in ("eager", "flash_attn", "flash_attention_2")
    }
    assert peaks["flash_attn"] == peaks["flash_attention_2"] < peaks["eager"] / 2


def test_axolotls_pretraining_is_named_as_that(plan):
    document = plan(AXOLOTL.replace("datasets:", "pretraining_dataset:"))
    assert document["method"] == "pretrain"
    (found,) = document["unmodelled"]  # a buffer on the host, beside the verdict on the GPU
    assert (found["key"], found["memory"]) == ("pretraining_dataset", "host")
    assert document["asked"]["fits"] == "yes"


DPO_LOSS = "loss: {_component_: torchtune.rlhf.loss.DPOLoss}\n"


KD = ADAMW + "teacher_model: {_component_: %s}\nkd_loss: {_component_: x}\n"


def test_the_teacher_of_a_distillation_is_counted(plan):
    # Llama-3.1-8B in bf16 beside a 1B: torchtune 0.6.1, knowledge_distillation_single_device.py.
    alone = plan(TORCHTUNE + ADAMW)
    taught = plan(TORCHTUNE + KD % "torchtune.models.llama3_1.llama3_1_8b")
    assert (alone["method"], taught["method"]) == ("sft", "distillation")
    weights = [one["asked"]["estimate"]["terms"]["weights"] for one in (alone, taught)]
    assert weights[1] - weights[0] == 2 * 8_030_261_248
    assert taught["asked"]["fits"] == "unsure"
    (one,) = taught["unmodelled"]
    assert one["key"] == "kd_loss"
    assert "the student's and the teacher's logits" in one["effect"]


def test_a_teacher_of_unknown_size_is_named(plan):
    taught = plan(TORCHTUNE + KD % "own.builder")
    assert {one["key"] for one in taught["unmodelled"]} == {"kd_loss", "teacher_model"}
    assert taught["asked"]["fits"] == "unsure"


def test_the_models_of_ppo_are_counted(plan):
    # A reference and a reward model as stored, a value model with gradients and AdamW's states.
    base = TORCHTUNE.replace("llama3_2.lora_llama3_2_1b", "llama2.llama2_7b")
    base = base.replace("  lora_attn_modules: [q_proj, v_proj]\n  lora_rank: 8\n", "")
    ppo = (
        base
        + ADAMW
        + """
loss: {_component_: torchtune.rlhf.loss.PPOLoss}
reward_and_value_model: {_component_: torchtune.models.llama2.llama2_reward_7b}
ppo_batch_size: 4
gradient_accumulation_steps: 2
"""
    )
    alone, found = plan(base + ADAMW), plan(ppo)
    assert (found["method"], found["asked"]["fits"]) == ("ppo", "no")  # 13.5 GB seven times
    plain, terms = (one["asked"]["estimate"]["terms"] for one in (alone, found))
    seven = 2 * 6_738_415_616
    assert terms["weights"] - plain["weights"] == 3 * seven
    assert terms["optimizer"] - plain["optimizer"] == 2 * seven
    assert (found["asked"]["plan"]["micro_batch"], found["asked"]["plan"]["accumulation"]) == (2, 2)
    assert {one["key"] for one in found["unmodelled"]} == {"forward_batch_size"}


@pytest.mark.parametrize(
    "job",
    [
        f"{SWIFT.replace('swift sft', 'swift rlhf')} --rlhf_type %s --tuner_type full",
        AXOLOTL.replace("adapter: lora\nlora_r: 8\nlora_target_modules: [q_proj, v_proj]\n", "")
        + "rl: %s\n",
    ],
)
def test_pairs_are_compared_with_a_copy_under_full_tuning(plan, job):
    # Qwen2.5-0.5B has 494,032,768 numbers; ORPO compares with no reference.
    weights = [
        plan(job % kind)["asked"]["estimate"]["terms"]["weights"] for kind in ("orpo", "dpo")
    ]
    assert weights[1] - weights[0] == 2 * 494_032_768


@pytest.mark.parametrize(
    ("plain", "pairs"),
    [
        (SWIFT, f"{SWIFT.replace('swift sft', 'swift rlhf')} --rlhf_type dpo"),
        (AXOLOTL, AXOLOTL + "rl: dpo\n"),
        (TORCHTUNE + ADAMW, TORCHTUNE + ADAMW + DPO_LOSS),
    ],
)  # fmt: skip
def test_pairs_take_twice_the_logits_and_more(plan, plain, pairs):
    logits = [plan(job)["asked"]["estimate"]["terms"]["logits_and_loss"] for job in (plain, pairs)]
    assert logits[1] >= 2 * logits[0] * 0.9


@pytest.mark.parametrize(
    ("job", "is_run"), [(SWIFT, True), (AXOLOTL, True), (LF, True), (TORCHTUNE + ADAMW, True)]
)
def test_a_plan_says_where_its_framework_was_read_and_not_run(plan, job, is_run):
    said = [note for note in plan(job)["notes"] if "no job of it was run" in note]
    assert len(said) == (0 if is_run else 1)


def test_a_file_that_states_rlhf_type_is_for_swift_rlhf(plan):
    text = "model: Qwen/Qwen2.5-0.5B\ndataset: d\ntuner_type: lora\nrlhf_type: kto\n"
    assert (plan(text)["framework"], plan(text)["method"]) == ("ms_swift", "kto")


@pytest.mark.parametrize("rl", ["kto", "simpo"])
def test_axolotl_loads_a_reference_that_nothing_uses(plan, rl):
    # axolotl 0.19.0, train.py (setup_reference_model); core/builders/rl.py gives it to DPO alone.
    full = AXOLOTL.replace("adapter: lora\n", "flash_attention: true\n")
    (one,) = plan(f"{full}rl: {rl}\n")["unmodelled"]
    assert "a further copy of the model" in one["effect"]


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("embedding", "embedding"),
        ("reranker", "classification"),
        ("generative_reranker", "classification"),
    ],
)
def test_texts_that_are_compared_are_rows_of_which_only_two_are_known(plan, task, method):
    # ms-swift 4.6.0, template/base.py: an anchor, a positive and all negatives of the data.
    document = plan(f"{SWIFT} --task_type {task}")
    assert document["method"] == method
    assert document["asked"]["fits"] == "unsure"
    (one,) = document["unmodelled"]
    assert one["key"] == "task_type"
    assert "each further text to compare with is one more" in one["effect"]


@pytest.mark.parametrize(
    "job",
    [
        SWIFT + " --per_device_train_batch_size 8 --task_type seq_cls --num_labels 2",
        SWIFT + " --per_device_train_batch_size 8 --task_type reranker",
        AXOLOTL + "process_reward_model: true\n",
        AXOLOTL + "model_type: AutoModelForSequenceClassification\n",
        SCRIPT.format("run_classification.py") + " --num_labels 4",
    ],
)
def test_a_classifier_has_scores_in_place_of_logits(plan, job):
    # A vocabulary of 151,936 words: 2 numbers a token take less than a thousandth of its logits.
    terms = plan(job)["asked"]["estimate"]["terms"]
    assert terms.get("logits_and_loss", 0) < 1 << 20


def test_a_classifier_of_many_labels_has_a_score_for_each(plan):
    peaks = [
        plan(f"{SWIFT} --task_type seq_cls --num_labels {labels} --max_length 2048")["asked"][
            "estimate"
        ]["allocated_bytes"]
        for labels in (2, 100_002)
    ]
    assert peaks[1] - peaks[0] >= 100_000 * 2048 * 2


def test_a_classifier_trains_no_head_for_words(plan):
    # Llama-3.1-8B has 128,256 x 4096 numbers in a head of its own.
    full = "swift sft --model meta-llama/Llama-3.1-8B --tuner_type full --torch_dtype bfloat16"
    words, labels = (plan(f"{full} --dataset d{more}") for more in ("", " --num_labels 2"))
    assert words["trained"]["parameters"] - labels["trained"]["parameters"] == 128_256 * 4096


@pytest.mark.parametrize(
    ("code", "method"),
    [
        ("model = AutoModelForSequenceClassification.from_pretrained(name)", "classification"),
        ("model = AutoModelForTokenClassification.from_pretrained(name)", "classification"),
        ("model = AutoModelForSequenceClassification.from_pretrained(n)\nRewardTrainer(model)",
         "reward"),
        ("trainer = DPOTrainer(model, ref_model)", "dpo"),
        ("trainer = GRPOTrainer(model)", "grpo"),
        ("trainer = AsyncGRPOTrainer(model)", "grpo"),
        ("class OwnDPOTrainer(DPOTrainer): ...", "dpo"),
        ("trainer = PPOv2Trainer(model)", "ppo"),
        ("trainer = MiniLLMTrainer(model)", "distillation"),
        ("DistillTrainer(model, teacher)", "distillation"),
        ("trainer = NashMDTrainer(model)", None),
        ("trainer = OnlineDPOTrainer(model)", None),
        ("trainer = WeightedTrainer(model)", "sft"),
        ("trainer = (SFTTrainer if warm else Own)(model)", "sft"),
        ("SFTTrainer(model).train()\nDPOTrainer(model).train()", "sft"),
        ("AutoModelForCausalLM if words else AutoModelForSequenceClassification", "sft"),
    ],
)  # fmt: skip
def test_the_code_of_a_script_shows_its_method(plan, tmp_path, code, method):
    (tmp_path / "train.py").write_text(code)
    assert plan(SCRIPT.format("train.py"))["method"] == method


def test_llamafactorys_ppo_is_planned_and_names_what_is_not_counted(plan):
    document = plan(LF + "stage: ppo\nreward_model: rm\n")
    assert (document["method"], document["asked"]["fits"]) == ("ppo", "unsure")
    assert [one["key"] for one in document["unmodelled"]] == ["stage", "reward_model", "method"]
    assert document["rejected"] is None
    said = plan(LF + "stage: ppo\n")["rejected"]["message"]
    assert said == "`reward_model` is necessary for PPO training."


SEES = "Qwen/Qwen2.5-VL-7B-Instruct"
SWIFT_SEES = f"swift sft --model {SEES} --dataset d"
LF_SEES = LF.replace("Qwen/Qwen2.5-0.5B", SEES)
TRL_SEES = "trl sft --model_name_or_path {} --dataset_name d --use_peft --lora_target_modules {}"
LLAVA = "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize(
    ("job", "reached"),
    [
        (SWIFT_SEES, False),
        (f"{SWIFT_SEES} --freeze_vit false", True),
        (f"{SWIFT_SEES} --target_modules q_proj v_proj", False),
        (f"{SWIFT_SEES} --target_modules qkv q_proj", True),
        (f"{SWIFT_SEES} --tuner_type full --freeze_vit false", False),
        (LF_SEES, False),
        (LF_SEES + "freeze_vision_tower: false\n", True),
        (TRL_SEES.format(SEES, "all-linear"), True),
        (TRL_SEES.format(LLAVA, "q_proj v_proj"), True),
        (TRL_SEES.format(LLAVA, ".*language_model.*q_proj"), False),
        (TRL_SEES.format(LLAVA, ".*q_proj"), True),
    ],
)
def test_an_adapter_that_reaches_a_tower_is_never_sure_to_fit(plan, job, reached):
    document = plan(job)
    effects = [one["effect"] for one in document["unmodelled"] if one["key"] == "adapter"]
    assert any("tower" in effect for effect in effects) is reached
    assert not reached or document["asked"]["fits"] != "yes"


@pytest.mark.parametrize(
    ("job", "key"),
    [
        ("swift sft --dataset d", "model"),
        ("trl sft --dataset_name d", "model_name_or_path"),
        (AXOLOTL.replace("base_model: Qwen/Qwen2.5-0.5B", "base_model:"), "base_model"),
        (LF.replace("model_name_or_path: Qwen/Qwen2.5-0.5B\n", ""), "model_name_or_path"),
    ],
)
def test_a_job_without_a_model_is_told_its_own_setting(capsys, tmp_path, job, key):
    (tmp_path / "train.yaml").write_text(job)
    words = ["train.yaml"] if "\n" in job else ["--", *job.split()]
    assert main(["plan", "--gpu", "a100-80", *words]) != 0
    said = capsys.readouterr().err
    assert "names no model" in said
    assert f"Set {key}:" in said


def test_the_default_target_of_a_fused_matrix_has_no_models_own_name(plan):
    job = "trl sft --model_name_or_path openai-community/gpt2 --dataset_name d --use_peft"
    assert plan(job)["trained"]["what"] == "LoRA r=16 on the fused query, key and value"
