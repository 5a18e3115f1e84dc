"""Where a training step may run again in smaller parts, and what is known of its loss."""

from __future__ import annotations

import sys

from .in_place_ranks import is_exchanging, unwrapped, why_not_on_ranks
from .split_batch import NotRowsError, Rows
from .split_loss import LABELS, ROWS, SHIFTED_LABELS, SUM
from .split_media import Media
from .split_packed import PackedRow, is_packed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .split_loss import Samples

#: Kinds of training that communicate in the forward pass, or run the backward pass themselves.
#: Source: accelerate 1.15, utils/dataclasses.py, DistributedType.
_ELSEWHERE = {
    "DEEPSPEED": "DeepSpeed runs the backward pass",
    "FSDP": "FSDP communicates in the forward pass",
    "MEGATRON_LM": "Megatron-LM runs the training step",
    "XLA": "XLA compiles for fixed shapes",
}
#: Whose `training_step` only wraps that of the Trainer. Source: TRL 1.16, LLaMA-Factory 0.9.5,
#: ms-swift 4.6, axolotl 0.19.
_KNOWN_STEPS = ("transformers", "trl", "llamafactory", "swift", "axolotl")
#: ms-swift's trainer of `swift sft`. It cuts labels to the tokens that have logits, as it moves a
#: batch to the device. Source: ms-swift 4.6.
_SWIFT_SFT = "swift.trainers.seq2seq_trainer"
#: Whose batches are ready before the training step.
_READY = ("transformers.trainer", _SWIFT_SFT)
#: Whose loss is a sum or a mean over tokens, unless the user passes a loss function.
#: Source: `compute_loss` of transformers 4.51 to 5.23, LLaMA-Factory 0.9.5, TRL 1.16, ms-swift 4.6
#: and axolotl 0.19.
_KNOWN_LOSSES = frozenset(
    {
        "transformers.trainer",
        "transformers.trainer_seq2seq",
        "llamafactory.train.sft.trainer",
        "llamafactory.train.pt.trainer",
        "trl.trainer.sft_trainer",
        _SWIFT_SFT,
        "axolotl.core.trainers.base",
    }
)
#: Whose batches hold the chosen answers of all pairs, then the rejected ones, and whose loss is a
#: mean over pairs. Source: DataCollatorForPreference of TRL 1.16, PairwiseDataCollatorWithPadding
#: of LLaMA-Factory 0.9.5.
_PAIRS = frozenset(
    {
        "llamafactory.train.dpo.trainer",
        "llamafactory.train.rm.trainer",
        "trl.trainer.dpo_trainer",
        "trl.trainer.reward_trainer",
    }
)
#: Losses of DPO for which that is not so: they sort the batch, count tokens, or keep a mean of all
#: rewards so far. Source: `_compute_loss` of TRL 1.16, `dpo_loss` of 0.24, `bco_loss` of
#: LLaMA-Factory 0.9.5.
_OF_THE_BATCH = {
    "aot": "sorts the pairs of a batch",
    "aot_pair": "sorts the pairs of a batch",
    "aot_unpaired": "sorts the pairs of a batch",
    "bco_pair": "keeps a mean of the rewards of each batch",
    "sft": "adds a mean over tokens to one over pairs",
}
#: Losses of a model that shift the labels by one token.
#: Source: transformers 5.23, loss/loss_utils.py, LOSS_MAPPING.
_SHIFTING = ("ForCausalLM", "ForConditionalGeneration")


def why_not(trainer: Any, model: Any, torch: Any) -> str | None:
    """Return why no step of this trainer can run in parts, None if it can."""
    args, accelerator = trainer.args, trainer.accelerator
    kind = _text(accelerator.distributed_type)
    if kind in _ELSEWHERE:
        return _ELSEWHERE[kind]
    if int(getattr(args, "n_gpu", 1)) > 1:
        return "DataParallel divides each batch itself"
    if int(accelerator.num_processes) > 1 or is_exchanging(model):
        reason = why_not_on_ranks(trainer, model)
        if reason is not None:
            return reason
        model = unwrapped(model)
    return (
        _of_gradients(trainer, model)
        or _of_loss(trainer)
        or _of_template(trainer, model)
        or _of_model(trainer, model, torch)
    )


class BatchKind:
    """What the batches of a trainer hold: rows, pairs of rows, media."""

    def __init__(self, trainer: Any, model: Any) -> None:
        model = unwrapped(model)
        config = getattr(model, "config", None)
        self._media = Media.of(model)
        self._pairs = _is_of_pairs(trainer)
        attention = str(getattr(config, "_attn_implementation", ""))
        masking = sys.modules.get("transformers.masking_utils")
        self._separates = attention.startswith(("flash", "kernels-community")) or hasattr(
            masking, "find_packed_sequence_indices"
        )

    def read(self, batch: Any) -> Samples:
        """Return the samples of a batch.

        Raises:
            NotRowsError: if it cannot be divided by them.
        """
        if not is_packed(batch):
            return Rows(batch, media=self._media, pairs=self._pairs)
        if self._media is not None or self._pairs:
            raise NotRowsError("the samples of a packed row have media or are pairs")
        if not self._separates:
            raise NotRowsError("packed samples see each other in this attention")
        return PackedRow(batch)


def _is_of_pairs(trainer: Any) -> bool:
    return any(one.__module__ in _PAIRS for one in type(trainer).__mro__)


def _of_loss(trainer: Any) -> str | None:
    """Return why the loss of a batch does not follow from that of its samples."""
    modules = [one.__module__ for one in type(trainer).__mro__]
    if getattr(trainer.args, "orpo_alpha", None):  # axolotl
        return "the loss of ORPO is not known to add up"
    if any(name.endswith(("kto_trainer", "kto.trainer", "bco_trainer")) for name in modules):
        return "the loss compares the answers of a batch"
    if not any(name.endswith(("dpo_trainer", "dpo.trainer")) for name in modules):
        return None
    losses = getattr(trainer, "loss_types", None) or getattr(trainer, "loss_type", None) or ()
    for one in [losses] if isinstance(losses, str) else losses:
        if one in _OF_THE_BATCH:
            return f"the loss {one} {_OF_THE_BATCH[one]}"
    if getattr(getattr(trainer, "finetuning_args", None), "pref_bco_weight", 0):
        return f"the loss bco_pair {_OF_THE_BATCH['bco_pair']}"
    return None


def _of_template(trainer: Any, model: Any) -> str | None:
    """Return why a batch of ms-swift's is not divided: its template knows more than the batch."""
    template: Any = getattr(trainer, "template", None)
    if template is None or type(trainer)._prepare_inputs.__module__ != _SWIFT_SFT:  # noqa: SLF001 - who prepares
        return None
    if int(getattr(template, "sequence_parallel_size", 1) or 1) > 1:
        return "sequence parallelism communicates in the forward pass"
    own_context = type(template).forward_context.__module__ != "swift.template.base"
    if own_context and getattr(template, "padding_free", False):
        return "the template passes the places of a whole batch to the attention"
    is_moe = getattr(getattr(model, "model_info", None), "is_moe_model", False)
    if is_moe and (getattr(trainer.args, "router_aux_loss_coef", 0) or 0) > 0:
        return "the router's auxiliary loss depends on the whole batch"
    return None


def _of_gradients(trainer: Any, model: Any) -> str | None:
    """Return why gradients cannot be dropped and computed again."""
    optimizer = _text(getattr(trainer.args, "optim", ""))
    hooked = any(
        getattr(parameter, "_post_accumulate_grad_hooks", None) for parameter in model.parameters()
    )
    of_factory = getattr(trainer, "finetuning_args", None)
    if hooked or "lomo" in optimizer or "layerwise" in optimizer:
        return "the optimizer consumes gradients in the backward pass"
    if getattr(of_factory, "use_badam", False):
        return "BAdam replaces the parameters that are trained"
    if type(trainer)._prepare_inputs.__module__ not in _READY:  # noqa: SLF001 - who prepares
        return f"{type(trainer).__name__} prepares its batches in the training step"
    return None


def _of_model(trainer: Any, model: Any, torch: Any) -> str | None:
    """Return why a batch and its parts differ in more than rounding, or in what they keep."""
    args = trainer.args
    if getattr(args, "torch_compile", False) or type(model).__name__ == "OptimizedModule":
        return "torch.compile may have fixed the shapes"
    if getattr(args, "activation_offloading", False):
        return "activations are offloaded"
    if getattr(args, "layer_offloading", False):  # axolotl
        return "layers are moved to the GPU as the pass goes on"
    norm = torch.nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the base of all of them
    if any(isinstance(module, norm) for module in model.modules()):
        return "batch normalization depends on the whole batch"
    configs = [getattr(model, "config", None)]
    configs += [getattr(configs[0], name, None) for name in ("text_config", "thinker_config")]
    if any(getattr(config, "output_router_logits", False) for config in configs) or getattr(
        trainer, "aux_loss_enabled", False
    ):
        return "the router's auxiliary loss depends on the whole batch"
    return None


def has_known_steps(trainer: Any) -> bool:
    """Return whether only the Trainer computes gradients in a training step."""
    owners = [one for one in type(trainer).__mro__ if "training_step" in vars(one)]
    return all(one.__module__.split(".")[0] in _KNOWN_STEPS for one in owners)


def expected_way(trainer: Any, model: Any, items: Any) -> str | None:
    """Return how the losses of rows add up, where whoever computes them is known."""
    owner = next(one for one in type(trainer).__mro__ if "compute_loss" in vars(one))
    custom = getattr(trainer, "compute_loss_func", None) is not None
    if owner.__module__ in _PAIRS and not custom and "compute_loss" not in vars(trainer):
        return ROWS
    if custom or owner.__module__ not in _KNOWN_LOSSES or "compute_loss" in vars(trainer):
        return None
    if items is not None:
        return SUM
    if owner.__module__ == _SWIFT_SFT:  # a mean over labels that may be shifted or not
        return None
    return SHIFTED_LABELS if getattr(unwrapped(model), "loss_type", None) in _SHIFTING else None


def expected_evaluation(trainer: Any, model: Any, batch: Any, rows: Samples) -> str | None:
    """Return how the losses of rows in an evaluation add up, where whoever computes them is known.

    Each is a mean. Source: `prediction_step` of transformers 4.51 to 5.23, which divides by what
    the trainer counts, since 5.20 without the first labels; of TRL 1.16, which does not.
    """
    if expected_way(trainer, model, None) == ROWS:
        return ROWS
    if expected_way(trainer, model, 1) is None:
        return None
    owner = next(one for one in type(trainer).__mro__ if "prediction_step" in vars(one))
    if owner.__module__ == "trl.trainer.sft_trainer":
        return SHIFTED_LABELS
    if not owner.__module__.startswith(("transformers.", "llamafactory.")):
        return None
    base: Any = next(
        one for one in type(trainer).__mro__ if one.__module__ == "transformers.trainer"
    )
    code = getattr(base.prediction_step, "__code__", None)
    counts = "_get_num_items_in_batch" in getattr(code, "co_names", ())
    items = trainer._get_num_items_in_batch([batch], trainer.args.device) if counts else None  # noqa: SLF001 - as its prediction step does
    if items is None:
        return SHIFTED_LABELS
    ways = ((SHIFTED_LABELS, True), (LABELS, False))
    return next((way for way, one in ways if sum(rows.labelled(shifted=one)) == int(items)), None)


def is_rounded(trainer: Any, model: Any, torch: Any) -> bool:
    """Return whether losses are computed with less than the precision of fp32."""
    args = trainer.args
    if getattr(args, "bf16", False) or getattr(args, "fp16", False):
        return True
    matmul = getattr(getattr(torch.backends, "cuda", None), "matmul", None)
    on_cuda = str(args.device).startswith("cuda")
    if on_cuda and getattr(matmul, "allow_tf32", False):
        return True
    return any(one.is_floating_point() and one.dtype != torch.float32 for one in model.parameters())


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))
