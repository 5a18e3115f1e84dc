"""Generate `oomguard/evidence/phase_table.py` from the sources of the installed frameworks.

    python tests/frameworks/phase_sources.py

Walks the packages in the environments of the tests (and a folder of unpacked wheels, where one is
named in OOMGUARD_PHASE_SOURCES) without importing them, marks the functions that belong to one
phase, and writes the table with the versions it was made from. Rows of a package that is not there stay
as they are committed. Models' own files are left out: a `forward` is told by its name.
"""

# ruff: noqa: E501 -- a rule is one line
from __future__ import annotations

import ast
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "src"))

from oomguard.evidence.phase_table import TABLE as COMMITTED  # noqa: E402  found through the path above
from oomguard.evidence.phase_table import VERSIONS as COMMITTED_VERSIONS  # noqa: E402

TABLE = ROOT / "src" / "oomguard" / "evidence" / "phase_table.py"
ENVIRONMENTS = ("hf", "trl", "litgpt", "llamafactory", "torchtune", "schemas")

#: package -> (phase, files, functions): all functions of the first rule that matches count.
SAVE = r"_?save(_|$)|.*_save_|_?(save|write|dump)_\w*|get_\w*state_dict|gather_\w*state_dict|state_dict_for_save"
LOAD = r"_?load(_|$)|_?load_\w*|from_pretrained|_?restore\w*|set_\w*state_dict"
EVAL = (
    r"_?evaluate|evaluation_loop|prediction_loop|predict|_?predict_\w+|prediction_step|_?validat(e|ion)(_step|_loop)?"
    r"|test_step|_run_(validation|evaluation)|_?eval_\w+|nested_(concat|numpify|gather)|generate_example"
)
FORWARD = r"training_step|_?compute_loss|_?loss_step|_forward\w*|forward\w*|\w*_forward|get_batch_loss_metrics|\w*per_token_logps\w*|_?generate\w*|_sample|_beam_search|execute_model"
BACKWARD = r"_?backward(_\w+)?|\w+_backward(_\w+)?|_?(reduce|accumulate)_\w*grad\w*|unpack_hook|recompute_fn|run_backward"
STEP = r"_?(single_|multi_)?(optimizer_)?step|_init_group|_?(single|multi)_tensor_\w+|_fused_\w+|_take_model_step|\w*optimizer_states?(_step)?"
PREPARE = r"_?prepare_dataset|_?tokeniz\w+|_?preprocess\w*|process_\w+|get_\w*dataset\w*|_?get_\w*dataloaders?|_?setup_data|prepare_data"
RULES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "torch": (
        ("backward", r"autograd/(__init__|graph|function)\.py|_tensor\.py", r"backward|grad|_engine_run_backward"),
        ("backward", r"utils/checkpoint\.py|distributed/.*fsdp.*|nn/parallel/.*", BACKWARD),
        ("batch", r"utils/data/.*", r"_?fetch|_next_data|_process_data|_get_data|_try_get_data|default_collate|collate|_worker_loop|_try_put_index|__next__"),
        ("optimizer", r"optim/.*\.py|distributed/optim/.*", STEP),
        ("save", r"serialization\.py|distributed/checkpoint/state_dict_saver\.py|distributed/fsdp/_state_dict_utils\.py|distributed/checkpoint/state_dict\.py", SAVE + r"|async_save|_full_post_state_dict_hook|_post_state_dict_hook|_common_unshard\w+"),
        ("load", r"serialization\.py|distributed/checkpoint/(state_dict_loader|state_dict)\.py|nn/modules/module\.py|distributed/fsdp/_(state_dict|init)_utils\.py", LOAD + r"|_apply|to_empty|_init_param_handle\w*|_materialize\w*"),
        ("launch", r"distributed/(rendezvous|distributed_c10d|device_mesh)\.py", r"init_process_group|init_device_mesh|_create_c10d_store|\w*rendezvous\w*"),
        ("launch", r"cuda/__init__\.py", r"set_device|_lazy_init|init"),
    ),
    "transformers": (
        ("launch", r"training_args\w*\.py", r"_setup_devices|__post_init__"),
        ("launch", r"hf_argparser\.py", r"parse_\w+"),
        ("save", r"trainer\w*\.py|modeling_utils\.py|integrations/.*", SAVE + r"|_push_from_checkpoint"),
        ("eval", r"trainer\w*\.py", EVAL),
        ("load", r"core_model_loading\.py|quantizers/.*", r"\w*load\w*|create_quantized_param|convert\w*|set_param_for_module|_?process_model_\w+|spawn_\w+"),
        ("load", r"trainer\.py|modeling_utils\.py|models/auto/.*|tokenization_utils\w*\.py|integrations/(deepspeed|fsdp|accelerate|peft|bitsandbytes)\.py", LOAD + r"|_move_model_to_device|_wrap_model|deepspeed_init|_?from_config|resize_\w*embeddings|replace_with_\w+"),
        ("preprocess", r"trainer\.py", r"get_\w+_dataloader|_get_dataloader"),
        ("batch", r"data/data_collator\.py", r"torch_call|pad_without_fast_tokenizer_warning|_torch_collate_batch|default_data_collator|torch_default_data_collator"),
        ("batch", r"trainer\.py", r"get_batch_samples"),
        ("forward", r"trainer\w*\.py|generation/utils\.py", FORWARD),
    ),
    "accelerate": (
        ("launch", r"state\.py", r"__init__|set_device|_prepare_backend"),
        ("save", r"accelerator\.py|checkpointing\.py|utils/(fsdp_utils|other|megatron_lm)\.py", SAVE + r"|get_state_dict"),
        ("load", r"accelerator\.py|big_modeling\.py|checkpointing\.py|utils/(modeling|fsdp_utils|bnb)\.py", LOAD + r"|_?prepare(_model|_deepspeed|_fsdp2?|_ddp)?|dispatch_model|cpu_offload\w*|disk_offload\w*|set_module_tensor_to_device|fsdp2_\w+"),
        ("backward", r"accelerator\.py", r"backward"),
        ("optimizer", r"optimizer\.py", r"step"),
        ("batch", r"data_loader\.py", r"_fetch_batches"),
        ("forward", r"hooks\.py", r"pre_forward|post_forward"),
    ),
    "deepspeed": (
        ("launch", r"comm/comm\.py", r"init_distributed|mpi_discovery|initialize_mesh_device"),
        ("save", r"runtime/(engine|pipe/engine)\.py|runtime/zero/.*|runtime/checkpoint_engine/.*", SAVE + r"|_zero3_consolidated_16bit_state_dict|state_dict|_rigid_state_dict"),
        ("load", r"runtime/(engine|pipe/engine|state_dict_factory)\.py|runtime/zero/.*|inference/.*|__init__\.py", LOAD + r"|initialize|_configure_\w+|_post_init_method|_zero_init_param\w*|_create_fp\w+|_setup_for_real_optimizer"),
        ("backward", r"runtime/.*", BACKWARD + r"|_backward_\w+|reduce_\w+|allreduce_\w+"),
        ("optimizer", r"runtime/.*|ops/(adam|lion|lamb|adagrad)/.*", STEP),
        ("eval", r"runtime/.*engine\.py", r"eval_batch"),
        ("forward", r"runtime/engine\.py", r"forward"),
    ),
    "peft": (
        ("save", r"peft_model\.py|utils/save_and_load\.py|mixed_model\.py", r"save_pretrained|get_peft_model_state_dict"),
        ("load", r"peft_model\.py|mapping\w*\.py|mixed_model\.py|auto\.py|tuners/.*|utils/(other|save_and_load|loftq_utils|integrations)\.py", LOAD + r"|get_peft_model|load_adapter|add_adapter|inject_adapter\w*|\w*create_\w+|_replace_module|merge\w*|unload|_unload_and_\w+|prepare_model_for_\w+|reset_lora_parameters|init_\w+|\w*loftq\w*|\w*quantiz\w+|pissa_init|olora_init|corda_init|update_layer"),
    ),
    "trl": (
        ("save", r".*trainer.*\.py", SAVE),
        ("eval", r".*trainer.*\.py", EVAL),
        ("preprocess", r".*trainer.*\.py|data_utils\.py", PREPARE + r"|pack_dataset|apply_chat_template|maybe_\w+"),
        ("load", r"models/.*|generation/.*|experimental/.*", LOAD + r"|_init_vllm|sync_weights|create_\w+_from_path|prepare_deepspeed|prepare_fsdp|create_reference_model"),
        ("forward", r".*trainer.*\.py|generation/.*", FORWARD + r"|concatenated_\w+|_generate_and_score_completions|_prepare_inputs"),
    ),
    "lightning": (
        ("launch", r".*/strategies/.*|fabric/utilities/distributed\.py", r"setup_environment|_?setup_distributed|_init_dist_connection|set_world_ranks"),
        ("save", r".*", SAVE + r"|dump_checkpoint|_?save_checkpoint\w*"),
        ("load", r".*(checkpoint_connector|saving|strategies?|strategy|fabric|load)\w*\.py|.*/strategies/.*", LOAD + r"|load_checkpoint|resume_start|model_to_device|setup_module\w*"),
        ("eval", r".*/loops/(evaluation|prediction)_loop\.py", r"_?run|_evaluation_step|_predict_step|_decide_\w+|_on_\w+"),
        ("eval", r".*", r"validation_step|test_step|predict_step|_run_sanity_check|validate|predict"),
        ("forward", r".*", r"training_step|_training_step|_wrap_closure|closure"),
        ("backward", r".*", r"_?backward|run_backward|pre_backward|post_backward"),
        ("optimizer", r".*", r"optimizer_step|_optimizer_step|step"),
        ("preprocess", r".*/connectors/data_connector\.py|.*/core/(hooks|datamodule)\.py", r"prepare_data|train_dataloader|_?prepare_dataloader"),
    ),
    "litgpt": (
        ("save", r".*", SAVE),
        ("eval", r".*", r"validate|generate_example|evaluate\w*"),
        ("load", r".*", LOAD + r"|load_checkpoint|set_kv_cache|_materialize\w*|convert_\w+"),
        ("preprocess", r"finetune/.*|pretrain\.py", r"get_dataloaders"),
        ("preprocess", r"data/.*", r"prepare_data|setup|_setup_datasets|train_dataloader|val_dataloader|tokenize\w*"),
        ("forward", r"utils\.py|generate/.*|model\.py|lora\.py|adapter\w*\.py", r"chunked_cross_entropy|generate\w*|next_token|forward"),
    ),
    "torchtune": (
        ("launch", r"training/_distributed\.py", r"init_distributed"),
        ("save", r".*", SAVE + r"|gather_cpu_state_dict|save_checkpoint\w*"),
        ("load", r".*", LOAD + r"|load_checkpoint\w*|load_from_full_\w+|setup_caches|shard_model|validate_\w+missing\w+"),
        ("optimizer", r"training/.*|modules/.*", r"step|optim_step"),
        ("preprocess", r"datasets/.*", r"__init__|_setup\w*|tokenize\w*|_pack\w*|pack"),
        ("forward", r"modules/loss/.*|generation/.*|rlhf/.*", r"forward|compute_cross_entropy|generate\w*"),
    ),
    "recipes": (
        ("save", r".*", r"save_checkpoint|_save_\w+"),
        ("load", r".*", r"load_checkpoint|_load_\w+|_setup_model\w*|_setup_optimizer\w*|setup_model\w*"),
        ("preprocess", r".*", r"_setup_data|setup_data"),
        ("forward", r".*", r"_loss_step|generate_trajectory\w*|concatenated_forward"),
        ("eval", r".*", r"validate|evaluate"),
    ),
    "datasets": (
        ("batch", r"arrow_dataset\.py|formatting/.*", r"__getitems?__|_getitem|query_table|format_table|format_batch|format_row"),
        ("preprocess", r"(arrow_dataset|iterable_dataset|load|builder|arrow_writer|arrow_reader|dataset_dict|table|packaged_modules/.*)\.py", r"map|_?map_\w*|filter|load_dataset\w*|load_from_disk|_?prepare_split\w*|download_and_prepare|as_dataset|write\w*|read\w*|_?generate_tables|_?batch\w*|concatenate_datasets|save_to_disk|_?iter_\w+"),
    ),
    "vllm": (
        ("load", r"(v1/)?(worker|engine)/.*", r"load_model\w*|_initialize_kv_caches|initialize_(kv_)?cache\w*|initialize_from_config|determine_\w*(memory|blocks)|profile_run|_?dummy_run|compile_or_warm_up_model|init_device|capture_model|init_cache_engine|_init_executor"),
        ("load", r"model_executor/(model_loader|offloader|layers/quantization)/.*|(v1/)?executor/.*|model_executor/models/utils\.py", LOAD + r"|\w*load\w*|create_weights|process_weights\w*|_?maybe_offload\w*|wrap_modules|initialize_model|get_model|_init_\w+"),
        ("load", r"v1/core/kv_cache_utils\.py", r".*"),
        ("forward", r"(v1/)?worker/.*", r"execute_model|_model_forward"),
    ),
    "llamafactory": (
        ("preprocess", r"data/.*", r"(?!__).*"),
        ("load", r"model/.*", r"(_?load|init|_?setup|prepare|_?configure|patch|_?resize|register|add|find|get)_\w+"),
        ("load", r"train/tuner\.py", r"export_model"),
        ("load", r"train/(trainer_utils|callbacks)\.py", r"create_(ref|reward)_\w*model"),
        ("save", r"train/.*", SAVE),
        ("eval", r"train/.*", r"prediction_step|evaluate|predict|save_predictions"),
        ("forward", r"train/.*", FORWARD + r"|concatenated_forward|get_rewards|get_inputs|batched_forward_pass"),
    ),
    "swift": (
        ("preprocess", r"(llm/)?(dataset|template)/.*", r"load_dataset|map|encode\w*|_?preprocess\w*"),
        ("load", r"(llm/)?model/.*|tuners/.*", r"get_model\w*|load_\w+|from_pretrained|prepare_model|prepare_adapter"),
        ("save", r"(llm/)?train.*", SAVE),
        ("forward", r"trainers/.*|rlhf_trainers/.*", FORWARD),
    ),
    "axolotl": (
        ("preprocess", r"utils/data/.*|prompt_\w+.*", r"(?!__)\w*(load|prepare|process|tokeniz|save)\w*"),
        ("load", r"loaders/.*|utils/models\.py", r"(?!__)\w+"),
        ("save", r"train\.py", r"save_\w+"),
        ("eval", r"evaluate\.py", r"evaluate\w*"),
        ("forward", r"core/trainers/.*", FORWARD),
    ),
    "bitsandbytes": (("optimizer", r"optim/.*", r"step|update_step|init_state|prefetch_state|get_state_buffer"),),
}  # fmt: skip
SKIPPED = re.compile(
    r"/(tests?|testing|examples|docs|csrc)/|/models/(?!auto/)|_inductor|_dynamo|/fx/|/onnx/"
)


def packages() -> Iterator[tuple[str, str, Path]]:
    """Yield each package once: its name, its version and its folder."""
    seen: set[str] = set()
    for site in sites():
        for info in sorted(site.glob("*.dist-info")):
            found = _names(info)
            version = info.name.removesuffix(".dist-info").rsplit("-", 1)[1]
            for name in found & RULES.keys() - seen:
                if (site / name).is_dir():
                    seen.add(name)
                    yield name, version, site / name


def sites() -> Iterator[Path]:
    """Yield the folders that hold packages."""
    from environments import environment  # noqa: PLC0415  beside this file, for the tests

    for name in ENVIRONMENTS:
        python = Path(environment(name))
        yield from sorted(python.parents[1].glob("lib/python3*/site-packages"))
    if more := os.environ.get("OOMGUARD_PHASE_SOURCES"):
        yield Path(more)


def _names(info: Path) -> set[str]:
    name = info.name.rsplit("-", 1)[0].removesuffix(".dist-info").rsplit("-", 1)[0].lower()
    return {
        name,
        *({"swift"} if name == "ms_swift" else ()),
        *({"recipes"} if name == "torchtune" else ()),
    }


def functions(path: Path) -> set[str]:
    """Return the names of all functions in a file."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return set()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def marked(name: str, folder: Path) -> dict[str, dict[str, str]]:
    """Return the phase of each marked function, by file."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder).as_posix()
        rules = [
            (phase, names) for phase, files, names in RULES[name] if re.fullmatch(files, inside)
        ]
        if not rules or SKIPPED.search(f"/{name}/{inside}"):
            continue
        for function in sorted(functions(path)):
            phase = next((phase for phase, names in rules if re.fullmatch(names, function)), None)
            if phase is not None:
                found[f"{name}/{inside}"][function] = phase
    return dict(found)


def render(versions: dict[str, str], table: dict[str, dict[str, str]]) -> str:
    """Return the table as a module."""
    lines = [
        '"""Which functions of the frameworks belong to which phase: made by phase_sources.py."""',
        "",
        "# ruff: noqa: E501 -- a file is one line",
        "from __future__ import annotations",
        "",
        "VERSIONS = {",
        *(f'    "{name}": "{version}",' for name, version in sorted(versions.items())),
        "}",
        "",
        "#: file -> phase -> functions",
        "TABLE: dict[str, dict[str, str]] = {",
    ]
    for file, phases in sorted(table.items()):
        by_phase: dict[str, list[str]] = defaultdict(list)
        for function, phase in sorted(phases.items()):
            by_phase[phase].append(function)
        rows = ", ".join(
            f'"{phase}": "{" ".join(names)}"' for phase, names in sorted(by_phase.items())
        )
        lines.append(f'    "{file}": {{{rows}}},')
    return "\n".join([*lines, "}  # fmt: skip", ""])


def main() -> None:
    found = list(packages())
    absent = COMMITTED_VERSIONS.keys() - {name for name, *_ in found}
    versions = {name: COMMITTED_VERSIONS[name] for name in absent}
    table = {
        file: {name: phase for phase, names in phases.items() for name in names.split()}
        for file, phases in COMMITTED.items()
        if file.split("/", 1)[0] in absent
    }
    for name, version, folder in found:
        versions[name] = version
        table |= marked(name, folder)
    TABLE.write_text(render(versions, table), "utf-8")
    print(
        f"{sum(map(len, table.values()))} functions in {len(table)} files of {len(versions)} packages"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
