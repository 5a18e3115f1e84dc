"""What a prediction leaves out whatever the framework: by method, by what is trained, by model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from oomguard.catalogue.lookup import Model
from oomguard.estimate.counts import adapter, reaches_tower, targeted
from oomguard.estimate.unmodelled_layers import unmodelled_layers
from oomguard.job.memory_settings import Family, MemorySettings, Objective
from oomguard.job.plan import Tuning
from oomguard.job.training_job import Job
from oomguard.job.unmodelled import Direction, TrainingMethod, Unmodelled
from oomguard.predict.trace_request import is_before


def left_out(
    job: Job,
    method: TrainingMethod | None,
    model: Model,
    settings: MemorySettings,
    versions: Mapping[str, str],
) -> Iterator[Unmodelled]:
    """Yield what the estimate does not include; an adapter adds the settings of its framework.

    `versions` are those of packages that the job will run with, as far as they are known.
    """
    yield from _of_the_method(method, settings.objective, versions)
    if job.asked.tuning in (None, Tuning.OTHER):
        effect = "no setting shows what is trained, or the rank of its adapter"
        if job.asked.tuning is Tuning.OTHER:
            effect = "neither full fine-tuning, frozen layers nor LoRA, the kinds that are modelled"
        yield Unmodelled(key="tuning", effect=effect, direction=Direction.MORE)
    if job.stored_as is not None and job.asked.quantization is None:
        effect = (
            f"the checkpoint is quantized ({job.stored_as.described}): counted as if it were not"
        )
        yield Unmodelled(key="model", effect=effect, direction=Direction.EITHER)
    lora, transformers = settings.lora, versions.get("transformers")
    is_known = model.family is not Family.HF or transformers is not None
    if not is_known and any(one.count > 1 for one in targeted(model.architecture, lora)):
        effect = (
            "LoRA on every expert is counted; transformers from 5 on holds experts in one "
            "parameter, which PEFT before 0.19 leaves out"
        )
        yield Unmodelled(key="model", effect=effect, direction=Direction.LESS)
    if lora is not None and lora.targets and not adapter(model.architecture, job.asked, settings):
        effect = (
            f"no matrix that is known of the model is called {', '.join(lora.targets)}: the "
            "adapter is not counted"
        )
        yield Unmodelled(key="adapter", effect=effect, direction=Direction.MORE)
    if reaches_tower(model.architecture, job.asked, lora):
        yield Unmodelled(
            key="adapter",
            effect="LoRA also adapts the tower for images or sound: its adapters, and what the "
            "tower then keeps for the backward pass, are not counted",
            direction=Direction.MORE,
            traced=True,
        )
    layers = unmodelled_layers(model.config) if model.family is Family.HF else None
    if layers is not None:
        yield layers


def _of_the_method(
    method: TrainingMethod | None, objective: Objective | None, versions: Mapping[str, str]
) -> Iterator[Unmodelled]:
    """Yield that a method's loss is not included, or is that of another version."""
    if objective is not None and objective.since is not None:
        package, since = objective.since
        if is_before(versions.get(package), since):
            effect = (
                f"{package} {versions[package]} computes this loss in another way than "
                f"{'.'.join(map(str, since))}, which the prediction follows"
            )
            yield Unmodelled(key="method", effect=effect, direction=Direction.MORE)
    stated = objective is not None and objective.method is method
    if method is None or not (method.is_supervised or stated):
        name = "an unknown method" if method is None else method.value
        effect = f"{name} is planned as sft: its further rows, models and logits are not included"
        yield Unmodelled(key="method", effect=effect, direction=Direction.MORE)


def in_version(
    settings: MemorySettings, family: Family, versions: Mapping[str, str]
) -> MemorySettings:
    """Return the settings as the versions of packages carry them out.

    From transformers 5 on, experts are one parameter instead of layers. LoRA's names reach it from
    PEFT 0.19 on (utils/transformers_weight_conversion.py); where nothing is installed, no version
    is known. A known version leaves nothing to cover of the loss of earlier ones, and may be older
    than a framework's LoRA kernels.
    """
    objective = settings.objective
    if objective is not None and objective.since and objective.since[0] in versions:
        settings = replace(settings, objective=replace(objective, earlier=None))
    fused = settings.lora.fused if settings.lora else None
    if settings.lora and fused and is_before(versions.get(fused.since[0]), fused.since[1]):
        settings = replace(settings, lora=replace(settings.lora, fused=None))
    transformers, peft = (versions.get(name) for name in ("transformers", "peft"))
    as_one = family is Family.HF and is_before(transformers, (5,)) is False
    as_one = as_one and is_before(peft, (0, 19)) is True
    if settings.lora is None or not as_one:
        return settings
    return replace(settings, lora=replace(settings.lora, reaches_experts=False))
