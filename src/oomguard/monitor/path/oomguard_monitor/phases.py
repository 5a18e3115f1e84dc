"""The phases of a job, and which functions and frames belong to which."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LAUNCH, LOAD, PREPROCESS = "launch", "load", "preprocess"
BATCH, FORWARD, BACKWARD, OPTIMIZER = "batch", "forward", "backward", "optimizer"
EVAL, SAVE, UNKNOWN = "eval", "save", "unknown"

#: Before the first training step; no training step goes back to these.
BEFORE_TRAINING = frozenset({LAUNCH, LOAD, PREPROCESS, UNKNOWN})
#: What a job is taken to do until something is seen of its training: a default, not evidence.
DEFAULTS = frozenset({LAUNCH, LOAD, UNKNOWN})
#: They include what happens within them: a batch fetched during an evaluation is evaluation.
ENCLOSING = frozenset({EVAL, SAVE})
YIELDING = frozenset({FORWARD, BATCH, PREPROCESS, LOAD})

_EVALUATIONS = frozenset(
    {
        "evaluate",
        "validate",
        "evaluation_loop",
        "prediction_loop",
        "prediction_step",
        "eval_step",
        "validation_step",
    }
)
_DATA_FOLDERS = (
    ("/torch/utils/data/", BATCH),
    ("/datasets/arrow_", PREPROCESS),
    ("/datasets/builder", PREPROCESS),
    ("/datasets/load.py", PREPROCESS),
)
#: Of torch.nn.Module: they move or convert a whole model.
_MOVES = frozenset({"_apply", "to_empty"})
_TORCH = "/torch/"


def of_frames(frames: Iterable[tuple[str, str]], otherwise: str | None) -> str | None:
    """Return the phase of (file, function) pairs, outermost first; `otherwise` if none says it.

    The outermost frame decides for evaluation, saving, loading and data. Within a training step a
    module that runs in the backward pass (checkpointing) is backward, one that runs in an
    optimizer's closure is forward.
    """
    inner = None
    for file, function in frames:
        outer = _enclosing(file, function)
        if outer is not None:
            return outer
        inner = _inside_step(file, function, inner)
    if inner is FORWARD and otherwise in ENCLOSING:
        return otherwise
    return inner or otherwise


def _enclosing(file: str, function: str) -> str | None:
    if function in _EVALUATIONS and _TORCH not in file:
        return EVAL
    for folder, phase in _DATA_FOLDERS:
        if folder in file:
            return phase
    name = function.lstrip("_")
    if file.endswith("/torch/serialization.py") and name in {"save", "load"}:
        return SAVE if name == "save" else LOAD
    if name.startswith("save_"):
        return SAVE
    if name == "from_pretrained" or name.startswith(("load_model", "load_checkpoint")):
        return LOAD
    return None


def _inside_step(file: str, function: str, inner: str | None) -> str | None:
    if file.endswith("/torch/autograd/__init__.py") and function == "backward":
        return BACKWARD
    if "/torch/optim/" in file or file.endswith("/torch/nn/utils/clip_grad.py"):
        return OPTIMIZER
    if file.endswith("/torch/nn/modules/module.py") and "call_impl" in function:
        return inner if inner is BACKWARD else FORWARD
    if inner is None and "/torch/nn/modules/" in file and function in {"__init__", *_MOVES}:
        return LOAD
    return inner


TRAINER, DATASETS = "transformers.trainer", "datasets.arrow_dataset"
#: module -> (class in it, or None for the module itself; function; phase). What a version does
#: not have is skipped.
LIBRARIES: dict[str, tuple[tuple[str | None, str, str], ...]] = {
    TRAINER: (
        ("Trainer", "evaluation_loop", EVAL),
        ("Trainer", "prediction_loop", EVAL),
        ("Trainer", "_save_checkpoint", SAVE),
        ("Trainer", "save_model", SAVE),
    ),
    "transformers.modeling_utils": (
        ("PreTrainedModel", "from_pretrained", LOAD),
        ("PreTrainedModel", "save_pretrained", SAVE),
    ),
    DATASETS: (),
    "safetensors.torch": (
        (None, "save_file", SAVE),
        (None, "load_file", LOAD),
    ),
    "lightning.pytorch.loops.evaluation_loop": (("_EvaluationLoop", "run", EVAL),),
    "pytorch_lightning.loops.evaluation_loop": (("_EvaluationLoop", "run", EVAL),),
    **{
        f"litgpt.{name}": ((None, "validate", EVAL),)
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
#: module -> (class in it, or None; function) of the training loop: a loop that returns has trained.
LOOPS: dict[str, tuple[str | None, str]] = {
    TRAINER: ("Trainer", "train"),
    **{name: (None, "fit") for name in LIBRARIES if name.startswith("litgpt.")},
}
