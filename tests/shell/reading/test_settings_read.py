"""What a setting changes is counted; what is left out is named, and then no plan fits for sure."""

from __future__ import annotations

import pytest

from oomguard.cli.main import main
from shell.reading_jobs import ADAMW, AXOLOTL, LF, SCRIPT, SWIFT, TORCHTUNE, TRL


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
        (AXOLOTL + "fsdp: [shard_grad_op, auto_wrap]\n", "fsdp", "either"),
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


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("get_peft_model(model, IA3Config())", "unknown"),
        ("peft_config = PrefixTuningConfig(num_virtual_tokens=20)", "unknown"),
        ("PromptTuningConfig(\n    num_virtual_tokens=8)", "unknown"),
        ("model = get_peft_model(model, peft.VeraConfig(r=256))", "unknown"),
        ("get_peft_model(model, OFTConfig(r=8))", "unknown"),
        ("get_peft_model(model, LoraConfig(r=a.rank))", "unknown"),
        ("if args.use_lora:\n    model = get_peft_model(model, LoraConfig(r=8))", "full"),
        ("LoraConfig(r=args.lora_r) if args.lora_r else None", "full"),
        ("peft_config = get_peft_config(model_args)", "full"),
        ("from peft import IA3Config", "full"),
    ],
)
def test_an_adapter_that_only_the_code_of_a_script_shows_is_not_full_tuning(
    plan, tmp_path, code, what
):
    (tmp_path / "train.py").write_text(code)
    document = plan(SCRIPT.format("train.py"))
    assert document["trained"]["what"].startswith(what)
    named = [one["key"] for one in document["unmodelled"]]
    assert (named, document["asked"]["fits"]) == (
        (["tuning"], "unsure") if what == "unknown" else ([], "yes")
    )


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


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("", "bf16-true"),
        ("bf16: true\nfp16: true\n", "bf16-true"),
        ("bf16: false\nbfloat16: true\n", "bf16-true"),
        ("bf16: false\nfloat16: true\n", "fp16-true"),
        ("bf16:\nfp16: true\n", "fp16-true"),
        ("fp16: true\n", "fp16-true"),
        ("bf16: false\n", "fp32"),
        ("bf16:\n", "fp32"),
    ],
)
def test_axolotl_loads_weights_in_the_format_of_its_first_switch_that_is_on(plan, text, precision):
    asked, flash = (
        plan(FULL_AXOLOTL + text + more)["asked"]
        for more in ("", "attn_implementation: flash_attention_2\n")
    )
    assert asked["plan"]["precision"] == precision
    wide = 4 if precision == "fp32" else 2
    weights, beside = wide * 7.616e9, (4 - wide) * 2 * 152064 * 3584  # embeddings, head: in fp32
    assert flash["estimate"]["terms"]["weights"] == pytest.approx(weights, rel=0.01)
    assert asked["estimate"]["terms"]["weights"] == pytest.approx(weights + beside, rel=0.01)


@pytest.mark.parametrize(
    ("job", "size"),
    [
        (AXOLOTL, 4),
        (AXOLOTL + "load_in_8bit: true\n", 4),
        (AXOLOTL + "rl: simpo\n", 4),
        (AXOLOTL.replace("lora\n", "qlora\nload_in_4bit: true\n", 1) + "rl: dpo\n", 2),
        (AXOLOTL + "deepspeed: {zero_optimization: {stage: 2}}\n", 2),
        (LF.replace("bf16: true", "pure_bf16: true"), 4),
        (TRL + "use_peft: true\ndtype: bfloat16\n", 4),
    ],
)
def test_an_adapter_is_in_fp32_over_weights_in_16_bits(plan, job, size):
    document = plan(job)
    terms, trained = document["asked"]["estimate"]["terms"], document["trained"]["parameters"]
    assert terms["adapter"] == size * trained


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


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("", ()),
        ("load_in_4bit: true\n", ()),
        ("load_in_8bit: true\n", ()),
        ("lora_qkv_kernel: false\n", ()),
        ("lora_mlp_kernel: true\n", ()),
        ("rl: dpo\n", ()),
        ("lora_o_kernel: true\nrl: dpo\n", ("lora_o_kernel", 11)),
        ("peft_use_dora: true\n", ("lora_mlp_kernel", None)),
        ("lora_target_modules: [q_proj, embed_tokens]\n", ("lora_mlp_kernel", None)),
        ("deepspeed: {zero_optimization: {stage: 3}}\n", ("lora_mlp_kernel", None)),
    ],
)
def test_lora_kernels_of_axolotl_are_named_only_where_they_are_not_modelled(plan, more, named):
    # axolotl 0.19.0, utils/schemas/config.py (check_auto_enable_lora_kernels).
    job = AXOLOTL.replace("lora_mlp_kernel: false\n", "") + more
    if "embed_tokens" in more:
        job = job.replace("lora_target_modules: [q_proj, v_proj]\n", "")
    if "4bit" in more:
        job = job.replace("adapter: lora", "adapter: qlora")
    document = plan(job)
    found = [(one["key"], one["line"]) for one in document["unmodelled"]]
    assert found == ([named] if named else [])
    assert document["asked"]["fits"] == ("unsure" if named else "yes")


def test_axolotls_lora_kernels_keep_less_and_the_interval_covers_pefts_layers(plan):
    every = "lora_target_linear: true\nplugins: [axolotl.integrations.liger.LigerPlugin]\n"
    every += "liger_fused_linear_cross_entropy: true\nsequence_len: 4096\nmicro_batch_size: 4\n"
    kept = AXOLOTL.replace("sequence_len: 512\nmicro_batch_size: 1\n", every)
    kernels = plan(kept.replace("lora_mlp_kernel: false\n", ""))["asked"]["estimate"]
    layers = plan(kept)["asked"]["estimate"]
    assert kernels["terms"]["activations"] < 0.7 * layers["terms"]["activations"]
    assert kernels["high_bytes"] == layers["high_bytes"]
    assert kernels["low_bytes"] < layers["low_bytes"]


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


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--peft_lora_r 64", ["peft_lora_r"]),
        ("--batch_size 4", ["batch_size"]),
        ("--vision_tower openai/clip-vit-large-patch14 --tune_mm_mlp_adapter True",
         ["tune_mm_mlp_adapter", "vision_tower"]),
        ("--freeze_backbone True --bits 4", ["bits", "freeze_backbone"]),
        ("--use_peft --lora_r 8 --freeze_backbone False --dataset_batch_size 9", []),
        ("--per_device_train_batch_size 4 --gradient_checkpointing_kwargs {}", []),
    ],
)  # fmt: skip
def test_what_a_script_is_told_about_memory_in_its_own_words_is_named(plan, flags, named):
    document = plan(f"{SCRIPT.format('train.py')} {flags}")
    assert sorted(one["key"] for one in document["unmodelled"]) == named
    assert document["asked"]["fits"] == ("unsure" if named else "yes")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("", True),
        ("--gradient_checkpointing", False),
        ("--gradient_checkpointing False", False),
    ],
)
def test_a_script_with_one_of_trls_configs_has_their_defaults(plan, tmp_path, flags, named):
    code = "from trl.experimental.online_dpo import OnlineDPOConfig\nparse(OnlineDPOConfig)\n"
    (tmp_path / "train.py").write_text(code)
    document = plan(f"{SCRIPT.format('train.py')} {flags}")
    assert ("script" in {one["key"] for one in document["unmodelled"]}) is named


@pytest.mark.parametrize("method", ["bnb", "bitsandbytes"])
def test_both_names_of_bitsandbytes_are_read(plan, method):
    document = plan(LF + f"quantization_bit: 4\nquantization_method: {method}\n")
    assert document["asked"]["plan"]["quantization"] == "nf4-double"
    assert document["unmodelled"] == []


@pytest.mark.parametrize(("code", "named"), [("", True), ("HfArgumentParser(A)\n", False)])
def test_no_batch_is_invented_for_a_script(plan, tmp_path, code, named):
    (tmp_path / "train.py").write_text(code)
    document = plan("python train.py --model_name Qwen/Qwen2.5-0.5B --max_length 512 --epochs 1")
    keys = {one["key"] for one in document["unmodelled"]}
    assert ("per_device_train_batch_size" in keys) is named
    assert (document["asked"]["fits"] == "unsure") is named


def test_a_deepspeed_config_that_is_not_there_is_named(plan):
    document = plan(f"{SCRIPT.format('train.py')} --deepspeed mine.json")
    assert ("deepspeed", "less") in {(one["key"], one["direction"]) for one in
                                     document["unmodelled"]}  # fmt: skip
