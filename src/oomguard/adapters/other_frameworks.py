"""Frameworks that have no adapter: recognized, so that a refusal names them.

A script of theirs would otherwise pass for one on the Trainer, and a config for none at all.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field

from oomguard.adapters import launchers
from oomguard.adapters.contract import Claim, Marks


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherFramework:
    """A framework without an adapter.

    `packages` are the Python packages whose modules it starts, `programs` its commands, `scripts`
    parts of the paths of its training scripts, lower case, `flags` those that no other has.
    `marks` recognizes its configs.
    """

    title: str
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    marks: Marks = field(default_factory=Marks)

    def starts(self, argv: tuple[str, ...]) -> bool:
        """Return whether a command line starts this framework."""
        if argv and posixpath.basename(argv[0]) in self.programs:
            return True
        launch = launchers.parse(argv)
        if launch is None:
            return False
        if launch.is_module:
            return launch.program.split(".")[0] in self.packages
        if any(word.partition("=")[0] in self.flags for word in launch.args):
            return True
        path = launch.program.lower()
        return any(part in path for part in self.scripts)


#: From each project's own documentation of how a training is started, and its example configs.
OTHER_FRAMEWORKS = (
    OtherFramework(
        title="verl",
        packages=("verl",),
        marks=Marks(own=frozenset({"actor_rollout_ref"})),
    ),
    OtherFramework(title="OpenRLHF", packages=("openrlhf",)),
    OtherFramework(
        title="torchtitan",
        packages=("torchtitan",),
    ),
    OtherFramework(
        title="Llama Cookbook (llama-recipes)",
        packages=("llama_recipes", "llama_cookbook"),
        flags=("--batch_size_training", "--enable_fsdp"),
    ),
    OtherFramework(title="Unsloth", scripts=("unsloth",)),
    OtherFramework(
        title="kohya-ss sd-scripts",
        scripts=(
            *(
                "sd-scripts/",
                "train_network.py",
                "sdxl_train",
                "sd3_train",
                "flux_train",
                "lumina_train",
            ),
            *("train_db.py", "train_textual_inversion.py", "train_controlnet.py"),
        ),
    ),
    OtherFramework(
        title="diffusers",
        scripts=("train_dreambooth", "train_text_to_image", "train_unconditional"),
    ),
    OtherFramework(
        title="NeMo",
        packages=("nemo", "nemo_automodel", "nemo_rl"),
        programs=("nemo", "automodel"),
        scripts=("megatron_gpt_finetuning", "megatron_gpt_pretraining"),
    ),
    OtherFramework(
        title="Megatron-SWIFT, ms-swift's megatron command",
        programs=("megatron",),
        marks=Marks(
            own=frozenset({"global_batch_size"}), needs=frozenset({"model", "micro_batch_size"})
        ),
    ),
    OtherFramework(
        title="Megatron-LM",
        packages=("megatron",),
        scripts=("pretrain_gpt.py", "pretrain_bert.py", "pretrain_t5.py"),
    ),
    OtherFramework(
        title="Composer (LLM Foundry)",
        packages=("composer", "llmfoundry"),
        programs=("composer",),
        marks=Marks(own=frozenset({"train_loader"}), needs=frozenset({"model", "max_duration"})),
    ),
    OtherFramework(
        title="DeepSpeed-Chat",
        packages=("dschat",),
        scripts=("deepspeed-chat/", "step1_supervised_finetuning/", "step3_rlhf_finetuning/"),
    ),
    OtherFramework(title="FastChat", packages=("fastchat",), scripts=("fastchat/train/",)),
    OtherFramework(title="XTuner", packages=("xtuner",), programs=("xtuner",)),
    OtherFramework(
        title="Ludwig",
        programs=("ludwig",),
        marks=Marks(own=frozenset({"input_features"}), needs=frozenset({"output_features"})),
    ),
    OtherFramework(title="GPT-NeoX", scripts=("deepy.py",)),
    OtherFramework(title="Open Instruct", packages=("open_instruct",), scripts=("open_instruct/",)),
    OtherFramework(title="MLX", packages=("mlx_lm",), programs=("mlx_lm", "mlx_lm.lora")),
    OtherFramework(
        title="LitGPT before its litgpt command",
        scripts=("finetune/lora.py", "finetune/adapter.py", "finetune/adapter_v2.py"),
    ),
)


def started_by(argv: tuple[str, ...]) -> OtherFramework | None:
    """Return the framework without an adapter that a command line starts."""
    return next((one for one in OTHER_FRAMEWORKS if one.starts(argv)), None)


def owner_of(document: Mapping[str, object]) -> OtherFramework | None:
    """Return the framework without an adapter that a config belongs to."""
    return next(
        (one for one in OTHER_FRAMEWORKS if one.marks.claim(document) is not Claim.NO), None
    )
