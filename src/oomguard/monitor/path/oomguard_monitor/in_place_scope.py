"""Where a training step may run again in smaller parts, and what is known of its loss."""

from __future__ import annotations

from .in_place_ranks import is_exchanging, unwrapped, why_not_on_ranks
from .split_loss import SHIFTED_LABELS, SUM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Kinds of training that communicate in the forward pass, or run the backward pass themselves.
#: Source: accelerate 1.15, utils/dataclasses.py, DistributedType.
_ELSEWHERE = {
    "DEEPSPEED": "DeepSpeed runs the backward pass",
    "FSDP": "FSDP communicates in the forward pass",
    "MEGATRON_LM": "Megatron-LM runs the training step",
    "XLA": "XLA compiles for fixed shapes",
}
#: Whose `training_step` only wraps that of the Trainer. Source: TRL 1.16, LLaMA-Factory 0.9.5.
_KNOWN_STEPS = ("transformers", "trl", "llamafactory")
#: Whose loss is a sum or a mean over tokens, unless the user passes a loss function.
#: Source: `compute_loss` of transformers 4.51 to 5.23, LLaMA-Factory 0.9.5 and TRL 1.16.
_KNOWN_LOSSES = frozenset(
    {
        "transformers.trainer",
        "transformers.trainer_seq2seq",
        "llamafactory.train.sft.trainer",
        "llamafactory.train.pt.trainer",
        "trl.trainer.sft_trainer",
    }
)
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
    return _of_gradients(trainer, model) or _of_model(trainer, model, torch)


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
    if type(trainer)._prepare_inputs.__module__ != "transformers.trainer":  # noqa: SLF001 - who prepares
        return f"{type(trainer).__name__} prepares its batches in the training step"
    return None


def _of_model(trainer: Any, model: Any, torch: Any) -> str | None:
    """Return why a batch and its parts differ in more than rounding, or in what they keep."""
    args = trainer.args
    if getattr(args, "torch_compile", False) or type(model).__name__ == "OptimizedModule":
        return "torch.compile may have fixed the shapes"
    if getattr(args, "activation_offloading", False):
        return "activations are offloaded"
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
    if custom or owner.__module__ not in _KNOWN_LOSSES or "compute_loss" in vars(trainer):
        return None
    if items is not None:
        return SUM
    return SHIFTED_LABELS if getattr(unwrapped(model), "loss_type", None) in _SHIFTING else None


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
