"""What is asked of a prediction, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from oomguard.catalogue.lookup import Model
from oomguard.estimate.analytic import EstimateInput
from oomguard.estimate.constants import CUDA, CUDA_ON_HOPPER, CudaOverhead
from oomguard.estimate.memory import MemoryEstimate
from oomguard.job.memory_settings import MemorySettings
from oomguard.job.plan import Plan
from oomguard.job.training_job import Job

#: Tokens of a prompt where the data cannot be read.
UNKNOWN_PROMPT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRequest:
    """The plans of one job whose peaks are wanted, the asked one first.

    `further` and `further_trained` count the numbers of other models, as in `EstimateInput`.
    """

    job: Job
    recipe: MemorySettings
    model: Model
    plans: Sequence[Plan]
    capacity_bytes: int
    further: int = 0
    further_trained: int = 0

    @property
    def without_kernels(self) -> PredictionRequest:
        """The request with PEFT's own layers in place of LoRA kernels: what is traced."""
        lora = self.recipe.lora
        if lora is None or lora.fused is None:
            return self
        return replace(self, recipe=replace(self.recipe, lora=replace(lora, fused=None)))

    def batched(self, plan: Plan) -> Plan:
        """Return the plan with the real length of its longest batch and its images' size."""
        longest, pixels = self._longest(plan), plan.image_pixels
        largest = max((high * wide for high, wide in self.images), default=None)
        if largest is not None and pixels is not None:
            plan = replace(plan, image_pixels=min(pixels, largest))
        plan = plan if longest is None else replace(plan, sequence_length=longest)
        return _bounded(plan)

    @property
    def images(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the images of the largest sample, () where that is not known."""
        return self.job.lengths.images if self.job.lengths else ()

    def _longest(self, plan: Plan) -> int | None:
        """Return the tokens of the longest sample where it is shorter than the limit, else None.

        Only a count by the model's own tokenizer is believed. A generated row is a whole prompt
        with the longest completion.
        """
        if plan.completion_length is not None:
            return self._prompt + plan.completion_length
        lengths, limit = self.job.lengths, plan.sequence_length
        filled = self.recipe.padded or (lengths is not None and lengths.filled)
        if lengths is None or filled or not lengths.is_exact:
            return None
        return lengths.longest if limit is None or lengths.longest < limit else None

    @property
    def _prompt(self) -> int:
        """Return the tokens of the longest prompt: at most that many where they are guessed."""
        lengths = self.job.lengths
        if lengths is None:
            return UNKNOWN_PROMPT
        return lengths.longest if lengths.is_exact else lengths.at_most or lengths.longest

    def problem(self, plan: Plan) -> EstimateInput:
        """Return one plan as the analytic estimate takes it."""
        model = self.model.architecture
        return EstimateInput(
            model=model.without_head if self.recipe.scores else model,
            plan=self.batched(plan),
            recipe=replace(self.recipe, images=len(self.images) or self.recipe.images),
            ranks=self.job.world.size,
            ranks_of_node=self.job.world.per_node,
            further=self.further,
            further_trained=self.further_trained,
            engine_bytes=int((plan.engine_share or 0) * self.capacity_bytes),
            cuda=cuda_overhead(self.job),
        )


def _bounded(plan: Plan) -> Plan:
    """Return the plan with a micro batch of as many of its longest samples as pass at once."""
    bound, length = plan.token_bound, plan.sequence_length
    if bound is None or length is None:
        return plan
    micro = min(plan.micro_batch, max(1, bound // length))
    return replace(plan, micro_batch=micro, accumulation=-(-plan.rank_batch // micro))


def cuda_overhead(job: Job) -> CudaOverhead:
    """Return what CUDA's libraries take on each GPU of a job."""
    return CUDA_ON_HOPPER if job.hopper else CUDA


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """An estimate for each plan, in order, and what a reader should know of them."""

    estimates: tuple[MemoryEstimate, ...]
    notes: tuple[str, ...] = ()
