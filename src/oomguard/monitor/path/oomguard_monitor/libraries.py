"""Which functions of which libraries show what the job is doing."""

from __future__ import annotations

from . import phases

TRAINER, DATASETS = "transformers.trainer", "datasets.arrow_dataset"
#: module -> (class in it, or None for the module itself; function; phase).
#: What a version does not have is passed over.
LIBRARIES: dict[str, tuple[tuple[str | None, str, str], ...]] = {
    TRAINER: (
        ("Trainer", "evaluation_loop", phases.EVAL),
        ("Trainer", "prediction_loop", phases.EVAL),
        ("Trainer", "_save_checkpoint", phases.SAVE),
        ("Trainer", "save_model", phases.SAVE),
    ),
    "transformers.modeling_utils": (
        ("PreTrainedModel", "from_pretrained", phases.LOAD),
        ("PreTrainedModel", "save_pretrained", phases.SAVE),
    ),
    DATASETS: (),
    "safetensors.torch": (
        (None, "save_file", phases.SAVE),
        (None, "load_file", phases.LOAD),
    ),
    "lightning.pytorch.loops.evaluation_loop": (("_EvaluationLoop", "run", phases.EVAL),),
    "pytorch_lightning.loops.evaluation_loop": (("_EvaluationLoop", "run", phases.EVAL),),
    **{
        f"litgpt.{name}": ((None, "validate", phases.EVAL),)
        for name in (
            "pretrain",
            "finetune.full",
            "finetune.lora",
            "finetune.lora_legacy",
            "finetune.adapter",
            "finetune.adapter_v2",
        )
    },
}
