"""What a prediction leaves out is named, and then no plan is said to fit."""

from __future__ import annotations

import json

import pytest

from oomguard.cli.main import main
from oomguard.units import GIB

LF = """
model_name_or_path: Qwen/Qwen2.5-0.5B
do_train: true
finetuning_type: lora
lora_target: all
dataset: mine
template: qwen
cutoff_len: 512
per_device_train_batch_size: 1
bf16: true
output_dir: out
"""
AXOLOTL = """
base_model: Qwen/Qwen2.5-0.5B
adapter: lora
lora_r: 8
lora_target_modules: [q_proj, v_proj]
datasets: [{path: mine, type: alpaca}]
sequence_len: 512
micro_batch_size: 1
bf16: true
output_dir: out
"""
TORCHTUNE = """
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, max_seq_len: 512}
model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b
  lora_attn_modules: [q_proj, v_proj]
  lora_rank: 8
checkpointer: {checkpoint_dir: /data/Llama-3.2-1B}
batch_size: 1
dtype: bf16
output_dir: out
"""
ADAMW = "optimizer: {_component_: torch.optim.AdamW}\n"
TRL = """
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: mine
max_length: 512
bf16: true
output_dir: out
"""
SWIFT = "swift sft --model Qwen/Qwen2.5-0.5B --tuner_type lora --torch_dtype bfloat16 --dataset d"
RLHF = SWIFT.replace("swift sft", "swift rlhf")
TRL_COMMAND = "{} --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name d --output_dir o"
SCRIPT = "python {} --model_name_or_path Qwen/Qwen2.5-0.5B --bf16 --max_length 512 --output_dir o"


#: Described, but for what these settings do.
UNMEASURED = {("ms_swift", "grpo"): ["rlhf_type", "dataset"]}
#: The methods whose step an adapter describes.
DESCRIBED = {
    "trl": ("dpo", "reward"),
    "llamafactory": ("dpo", "orpo", "simpo", "kto", "reward"),
    "axolotl": ("reward", "dpo", "kto", "orpo", "simpo"),
    "ms_swift": ("classification", "dpo", "kto", "orpo", "simpo", "cpo", "reward"),
    "hf_trainer": ("classification",),
    "torchtune": ("dpo",),
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("oomguard.cli.plan_job.tracer_of", lambda *_, **__: None)


@pytest.fixture
def plan(capsys, tmp_path):
    def run(job: str, *options: str) -> dict:
        words = ["--", *job.split()]
        if "\n" in job:
            (tmp_path / "train.yaml").write_text(job)
            words = ["train.yaml"]
        card = () if "--gpu-memory" in options else ("--gpu", "a100-80")
        assert main(["plan", *card, "--json", *options, *words]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys, tmp_path):
    def run(text: str, command: str = "plan") -> str:
        (tmp_path / "train.yaml").write_text(text)
        options = ["--gpu", "a100-80"] if command == "plan" else []
        assert main([command, *options, "train.yaml"]) != 0
        return capsys.readouterr().err

    return run


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
    ("job", "is_run"), [(SWIFT, True), (AXOLOTL, False), (LF, True), (TORCHTUNE + ADAMW, True)]
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
    full = AXOLOTL.replace("adapter: lora\n", "")
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


@pytest.mark.parametrize(
    ("job", "key", "direction"),
    [
        (LF.replace("lora\n", "full\n", 1) + "use_badam: true\n", "use_badam", "less"),
        *((LF.replace("lora\n", "full\n", 1) + f"use_{name}: true\n{other}", f"use_{name}", "less")
          for name, other in (
              ("galore", "galore_target: q_proj\n"), ("galore", "optim: adafactor\n"),
              ("apollo", "apollo_proj_type: left\n"),
          )),
        (LF + "use_kt: true\n", "use_kt", "less"),
        (LF + "quantization_bit: 4\nquantization_method: hqq\n", "quantization_method", "less"),
        (SWIFT + " --quant_method eetq", "quant_method", "less"),
        (AXOLOTL + "load_in_4bit: true\nbnb_config_kwargs: {bnb_4bit_quant_type: fp4}\n",
         "bnb_config_kwargs", "less"),
        (LF + "use_asft_loss: true\n", "use_asft_loss", "more"),
        (LF.replace("type: lora", "type: oft"), "tuning", "more"),
        (LF + "optim: galore_adamw\n", "optim", "either"),
        (LF.replace("Qwen2.5-0.5B", "Qwen2.5-0.5B-Instruct-GPTQ-Int8"), "model", "either"),
        (SWIFT.replace("Qwen2.5-0.5B", "Qwen2.5-0.5B-unsloth-bnb-4bit"), "model", "either"),
        (AXOLOTL.replace("Qwen2.5-0.5B", "Qwen2.5-0.5B-FP8"), "model", "either"),
        (AXOLOTL + "fsdp_config: {offload_params: true}\n", "fsdp_config.offload_params", "less"),
        (AXOLOTL + "fsdp_config: {reshard_after_forward: false}\n",
         "fsdp_config.reshard_after_forward", "more"),
        (AXOLOTL + "fsdp: [shard_grad_op, auto_wrap]\n", "fsdp", "more"),
        (AXOLOTL + "context_parallel_size: 2\n", "context_parallel_size", "less"),
        (AXOLOTL + "optimizer: muon\n", "optimizer", "either"),
        (AXOLOTL + "optimizer: adopt_adamw\n", "optimizer", "either"),
        (AXOLOTL + "qat:\n  weight_dtype: int4\n", "qat", "more"),
        (TRL + "optim: sgd\noptim_args: momentum=0.9\n", "optim_args", "more"),
        (SWIFT + " --optimizer muon", "optimizer", "either"),
        (SWIFT + " --optim stable_muon", "optim", "either"),
        (TORCHTUNE + ADAMW.replace("torch.optim.AdamW", "my.own.Optimizer"),
         "optimizer._component_", "either"),
        (SWIFT + " --sequence_parallel_size 8", "sequence_parallel_size", "less"),
        (SWIFT + " --device_map auto", "device_map", "less"),
        (TORCHTUNE + ADAMW + "ac_mode: selective\nac_option: 2\n", "ac_mode", "less"),
        (SWIFT + " --init_weights lora-ga", "init_weights", "more"),
        (SCRIPT.format("train.py") + " --optim apollo_adamw", "optim", "either"),
        (SCRIPT.format("train.py") + " --lora_r 8 --init_lora_weights pissa_niter_4",
         "init_lora_weights", "more"),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_modelled_is_named_and_widens_the_interval(plan, job, key, direction):
    document = plan(job)
    (found,) = document["unmodelled"]
    assert (found["key"], found["direction"]) == (key, direction)
    assert (found["line"] is None) == ("\n" not in job or key in ("tuning", "model"))
    estimate = document["asked"]["estimate"]
    assert document["asked"]["fits"] == "unsure"
    assert document["chosen"] is None
    wide = {"more": "high", "less": "low", "either": "high"}[direction]
    ratio = estimate["high_bytes"] / estimate["expected_bytes"]
    assert ratio > 1.9 if wide == "high" else ratio < 1.9
    assert (estimate["low_bytes"] < 0.6 * estimate["expected_bytes"]) == (direction != "more")


@pytest.mark.parametrize(
    "job",
    [
        LF.replace("type: lora", "type: oft"),
        SWIFT.replace("tuner_type lora", "tuner_type adalora"),
        AXOLOTL.replace("adapter: lora", "adapter: llama-adapter"),
    ],
)
def test_what_is_trained_is_unknown_where_it_is_not_modelled(plan, job):
    trained = plan(job)["trained"]
    assert trained["what"] == "unknown (not full fine-tuning, frozen layers or LoRA)"
    assert trained["parameters"] is None
    assert trained["total"] > 0


def test_a_setting_that_takes_host_memory_alone_leaves_the_verdict_on_the_gpu(plan):
    job = LF + "dataloader_num_workers: 4\ndataloader_prefetch_factor: 4\n"
    document, plain = plan(job), plan(LF)
    found = [(one["key"], one["memory"], one["direction"]) for one in document["unmodelled"]]
    assert found == [
        ("dataloader_prefetch_factor", "host", "more"),
        ("dataloader_num_workers", "host", "more"),
    ]
    assert document["asked"]["estimate"] == plain["asked"]["estimate"]
    assert (document["asked"]["fits"], plain["asked"]["fits"]) == ("yes", "yes")
    tight = plan(job, "--host-memory", f"{plain['asked']['estimate']['host_bytes'] * 3 // 2}")
    assert tight["asked"]["fits"] == "unsure"


#: Rows of the seven matrices of Qwen2.5-0.5B, and of q and v alone.
_ROWS, _SOME_ROWS = 896 + 128 + 128 + 896 + 4864 + 4864 + 896, 896 + 128


@pytest.mark.parametrize(
    ("job", "key", "rows"),
    [
        (LF, "use_dora: true\n", _ROWS),
        (AXOLOTL, "peft_use_dora: true\n", _SOME_ROWS),
        (TRL + "use_peft: true\nlora_target_modules: [q_proj, v_proj]\n", "use_dora: true\n",
         _SOME_ROWS),
        (SWIFT, " --use_dora true", _ROWS),
        (SCRIPT.format("train.py") + " --lora_r 8 --target_modules all-linear", " --use_dora true",
         _ROWS),
    ],
)  # fmt: skip
def test_dora_trains_a_magnitude_of_every_row_and_keeps_both_products(plan, job, key, rows):
    plain, document = plan(job), plan(job + key)
    assert document["unmodelled"] == []
    assert "with DoRA" in document["trained"]["what"]
    more = document["trained"]["parameters"] - plain["trained"]["parameters"]
    assert more == 24 * rows
    assert (
        document["asked"]["estimate"]["allocated_bytes"]
        > (plain["asked"]["estimate"]["allocated_bytes"])
    )


def test_torchtunes_dora_is_read_from_the_model(plan):
    job = TORCHTUNE + ADAMW
    plain, document = plan(job), plan(job.replace("lora_rank: 8", "lora_rank: 8\n  use_dora: true"))
    assert document["unmodelled"] == []
    more = document["trained"]["parameters"] - plain["trained"]["parameters"]
    assert more == 16 * (2048 + 512)


def test_axolotl_adapts_every_linear_layer_where_lora_target_linear_says_so(plan):
    document = plan(AXOLOTL + "lora_target_linear: true\n")
    assert document["unmodelled"] == []
    # Of Qwen2.5-0.5B: rank 8 on the seven matrices of 24 layers.
    shapes = [(896, 896), (896, 128), (896, 128), (896, 896)]
    shapes += [(896, 4864), (896, 4864), (4864, 896)]
    expected = 24 * 8 * sum(inputs + outputs for inputs, outputs in shapes)
    assert document["trained"]["parameters"] == expected


@pytest.mark.parametrize(
    ("key", "plugin"),
    [
        ("liger_fused_linear_cross_entropy", "axolotl.integrations.liger.LigerPlugin"),
        ("cut_cross_entropy", "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"),
    ],
)
def test_axolotl_fuses_the_loss_with_the_plugin_that_does(plan, key, plugin):
    whole = plan(AXOLOTL + f"{key}: true\n")["asked"]["estimate"]["terms"]["logits_and_loss"]
    document = plan(AXOLOTL + f"plugins: [{plugin}]\n{key}: true\n")
    assert document["unmodelled"] == []
    assert document["asked"]["plan"]["loss_kernel"] == "fused"
    assert document["asked"]["estimate"]["terms"].get("logits_and_loss", 0) < 0.5 * whole


FULL_AXOLOTL = """
base_model: Qwen/Qwen2.5-7B
sequence_len: 4096
micro_batch_size: 1
datasets: [{path: mine, type: alpaca}]
output_dir: o
gradient_checkpointing: true
"""


@pytest.mark.parametrize(
    ("version", "size"),
    [
        ("", 4),
        ("fsdp_version: 1\n", 4),
        ("fsdp_version: 2\n", 2),
        ("fsdp_config: {fsdp_version: 2, reshard_after_forward: true}\n", 2),
        ("fsdp_config: {version: 2, reshard_after_forward: true}\n", 2),
    ],
)
def test_the_first_fsdp_keeps_what_axolotl_trains_in_fp32(plan, version, size):
    more = "" if "fsdp_config" in version else "fsdp_config: {reshard_after_forward: true}\n"
    document = plan(FULL_AXOLOTL + more + version, "--gpus", "8")
    assert document["unmodelled"] == []
    terms = document["asked"]["estimate"]["terms"]
    assert terms["weights"] == pytest.approx(size * 7.616e9 / 8, rel=0.01)
    assert terms["optimizer"] == pytest.approx(2 * size * 7.616e9 / 8, rel=0.01)


def test_axolotl_shards_where_there_is_only_an_fsdp_config(plan):
    job = FULL_AXOLOTL
    named = "fsdp: [full_shard, auto_wrap]\nfsdp_config: {fsdp_offload_params: false}\n"
    alone, both = (
        plan(job + text, "--gpus", "8")
        for text in ("fsdp_config: {offload_params: false, reshard_after_forward: true}\n", named)
    )
    assert alone["unmodelled"] == both["unmodelled"] == []
    assert alone["asked"]["plan"]["sharding"] == "fsdp"
    assert alone["asked"]["estimate"] == both["asked"]["estimate"]


NAMES = "lora_target_modules: [q_proj, v_proj]\n"
ALL_NAMES = "lora_target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]\n"


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"model.layers.[\d]+.(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o)_proj", ALL_NAMES),
        (r".*\.(q|v)_proj", NAMES),
        (r"^model\.language_model\.layers\.\d+\.self_attn\.[qv]_proj$", NAMES),
    ],
)
def test_targets_that_are_a_regular_expression_are_matched_with_whole_names(plan, pattern, named):
    matched = plan(AXOLOTL.replace(NAMES, f"lora_target_modules: '{pattern}'\n"))
    assert matched["unmodelled"] == []
    for document in (
        matched,
        plan(SCRIPT.format("train.py") + f" --lora_r 8 --target_modules {pattern}"),
    ):
        trained = document["trained"]["parameters"]
        assert trained == plan(AXOLOTL.replace(NAMES, named))["trained"]["parameters"] > 0


def test_a_regular_expression_may_take_some_layers(plan):
    half = AXOLOTL.replace(
        NAMES, r"lora_target_modules: '.*\.layers\.[0-5]\.self_attn\.(q|v)_proj'" + "\n"
    )
    trained = [plan(job)["trained"]["parameters"] for job in (AXOLOTL, half)]
    assert trained[0] == 4 * trained[1]  # 24 layers


@pytest.mark.parametrize("targets", ["[wq, wv]", "'.*\\.wqkv'"])
def test_an_adapter_without_a_matrix_that_is_known_is_named(plan, targets):
    (found,) = plan(AXOLOTL.replace(NAMES, f"lora_target_modules: {targets}\n"))["unmodelled"]
    assert (found["key"], found["direction"]) == ("adapter", "more")


UNPACKED = "model_quantization_config_kwargs: {dequantize: true}\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("attn_implementation: kernels-community/vllm-flash-attn3\n", None),
        ("attn_implementation: flash_attention_3\n", None),
        ("attn_implementation: kernels-community/sage-attention-x\n", "attn_implementation"),
        ("liger_rms_norm: true\nliger_swiglu: true\n", None),
        ("liger_cross_entropy: true\n", "liger_cross_entropy"),
        ("load_in_4bit: true\nquantize_moe_experts: true\n", None),
        ("model_quantization_config: Mxfp4Config\n", "model_quantization_config"),
        (f"model_quantization_config: Mxfp4Config\n{UNPACKED}", None),
        ("activation_offloading: true\n", "activation_offloading"),
        ("activation_offloading: false\n", None),
    ],
)
def test_what_axolotl_reads_is_named_where_it_is_not_counted(plan, text, key):
    found = [one["key"] for one in plan(AXOLOTL + text)["unmodelled"]]
    assert found == ([key] if key else [])


@pytest.mark.parametrize(
    ("model", "kernel"), [("arcee-ai/AFM-4.5B", "fused"), ("openai-community/gpt2", "eager")]
)
def test_cut_cross_entropy_knows_more_models_than_liger(plan, model, kernel):
    job = AXOLOTL.replace("Qwen/Qwen2.5-0.5B", model).replace("q_proj, v_proj", "c_attn, q_proj")
    plugin = "plugins: [axolotl.integrations.{}]\n"
    cut = plan(job + plugin.format("cut_cross_entropy.CutCrossEntropyPlugin"))
    assert cut["asked"]["plan"]["loss_kernel"] == kernel
    liger = plugin.format("liger.LigerPlugin") + "liger_fused_linear_cross_entropy: true\n"
    assert plan(job + liger)["asked"]["plan"]["loss_kernel"] == "eager"


def test_a_checkpoint_in_mxfp4_is_counted_as_it_is_loaded(plan):
    job = AXOLOTL.replace("Qwen/Qwen2.5-0.5B", "openai/gpt-oss-20b")
    how = f"model_quantization_config: Mxfp4Config\n{UNPACKED}"
    for text, quantized in ((job, True), (job + how, False)):
        effects = [one["effect"] for one in plan(text)["unmodelled"]]
        assert any("the checkpoint is quantized" in effect for effect in effects) is quantized


def test_cut_cross_entropy_is_on_with_its_plugin(plan):
    plugin = "plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\n"
    kernels = [
        plan(AXOLOTL + plugin + more)["asked"]["plan"]["loss_kernel"]
        for more in ("", "cut_cross_entropy: false\n")
    ]
    assert kernels == ["fused", None]


@pytest.mark.parametrize("suffix", ["-AWQ", "-GPTQ", "-GPTQ-Int4"])
@pytest.mark.parametrize("job", [LF, AXOLOTL, TRL + "use_peft: true\n", SWIFT])
def test_a_checkpoint_in_four_bits_is_counted_as_stored(plan, job, suffix):
    plain = plan(job)["asked"]["estimate"]["terms"]
    document = plan(job.replace("Qwen2.5-0.5B", "Qwen2.5-0.5B-Instruct" + suffix))
    terms = document["asked"]["estimate"]["terms"]
    assert document["unmodelled"] == []
    assert document["asked"]["plan"]["quantization"] == "prequantized"
    # 358 million of 494 million numbers stand in matrices of the layers; the rest keeps 16 bits.
    assert plain["weights"] - terms["weights"] >= 0.99 * 357_826_560 * (2 - 0.5195)


Q7 = 7_615_616_512  # of Qwen2.5-7B: 28 layers, 233,046,016 numbers in the matrices of each


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("use_adam_mini: true", Q7),
        # Momentum for matrices; two moments for embeddings, head, norms and biases.
        ("use_muon: true", Q7 + 1_090_328_064),
        # Moments of 16 rows or columns, beside a projection from the shorter side.
        ("use_galore: true", 28 * 16 * 161_280 + 2 * 1_090_328_064),
        ("use_apollo: true", 28 * 16 * 161_280 + 2 * 1_090_328_064),
        ("use_galore: true\ngalore_rank: 128", 28 * 128 * 161_280 + 2 * 1_090_328_064),
        ("optim: lomo", 0),
    ],
)
def test_states_of_optimizers_that_save_memory_are_counted(plan, key, values):
    job = LF.replace("Qwen2.5-0.5B", "Qwen2.5-7B").replace("type: lora", "type: full")
    document = plan(f"{job}pure_bf16: true\n{key}\n", "--gpu-memory", "200GiB")
    assert document["unmodelled"] == []
    assert document["asked"]["estimate"]["terms"].get("optimizer", 0) >= 2 * values
    assert document["asked"]["estimate"]["terms"].get("optimizer", 0) <= 2.01 * values + 3 * 2**30


@pytest.mark.parametrize("key", ["galore", "apollo"])
def test_an_optimizer_for_each_layer_uses_gradients_as_they_come(plan, key):
    # LLaMA-Factory's README has 16 GB for a 7B model with them, as for Llama 2's.
    job = LF.replace("Qwen/Qwen2.5-0.5B", "meta-llama/Llama-2-7b-hf").replace("lora\n", "full\n", 1)
    job += f"pure_bf16: true\ngradient_accumulation_steps: 1\nuse_{key}: true\n"
    whole, each = (plan(job + more)["asked"] for more in ("", f"{key}_layerwise: true\n"))
    sizes = [one["estimate"]["allocated_bytes"] for one in (whole, each)]
    assert sizes[0] - sizes[1] > 1.8 * 6_738_415_616  # of 2 bytes for each number
    assert 15 * 10**9 < sizes[1] < 17 * 10**9


@pytest.mark.parametrize("key", ["use_badam"])
def test_a_7b_that_llamafactory_trains_in_16_gb_is_not_said_not_to_fit_24(plan, key):
    # Its README's table has 16 GB for a 7B model with these optimizers.
    job = LF.replace("Qwen2.5-0.5B", "Qwen2.5-7B").replace("type: lora", "type: full")
    document = plan(job + f"pure_bf16: true\n{key}: true\n", "--gpu-memory", "24GiB")
    assert document["asked"]["fits"] == "unsure"
    assert document["asked"]["estimate"]["low_bytes"] < 16 * 10**9


def test_what_is_left_out_is_said_beside_the_verdict(capsys, tmp_path):
    (tmp_path / "train.yaml").write_text(LF + "stage: ppo\nuse_asft_loss: true\nreward_model: rm\n")
    assert main(["plan", "--gpu", "a100-80", "train.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "The requested config may fit" in shown
    assert "leaves out use_asft_loss (line 13)" in shown
    assert "leaves out method: ppo is planned as sft" in shown


@pytest.mark.parametrize("off", ["use_dora: false", "optim: adamw_torch", "use_galore: false"])
def test_a_setting_that_is_off_leaves_nothing_out(plan, off):
    assert plan(LF + f"{off}\n")["unmodelled"] == []


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
