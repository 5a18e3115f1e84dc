"""What the forward pass keeps for the backward pass, and what a layer and the loss work with.

All figures are bytes. Derivation: which inputs torch's autograd formulas save for each operation
of a decoder layer (tools/autograd/derivatives.yaml), for the modules of common model libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.estimate.architecture import Architecture, Linear
from oomguard.estimate.counts import targeted, trained_layers
from oomguard.estimate.formats import Formats
from oomguard.estimate.fused_lora import FusedLora, fused_lora
from oomguard.estimate.generation import GenerationPass
from oomguard.estimate.objective_loss import ObjectiveLoss
from oomguard.job.memory_settings import Attention, FusedPart, MemorySettings
from oomguard.job.plan import LossKernel, Part, Plan, Quantization, Tuning

_FP32 = 4
#: Tokens whose logits a fused loss holds at once, as a share: Liger's chunks are about V / h times
#: smaller than the whole (liger_kernel/ops/fused_linear_cross_entropy.py).
_FUSED_COPIES = 3
#: The number of chunks that a chunked loss divides the logits into.
_CHUNKS = 8
#: Copies that transformers' unfused "gelu_new" keeps (activations.py, NewGELUActivation).
_GELU_COPIES = 5
#: Copies of the logits in a loop that drops those of an iteration when the next ones are
#: there (finetune/lora.py, fit): with log-probabilities, and with their gradients.
_CHUNKED_FORWARD, _CHUNKED_BACKWARD = 3, 5
#: Matrices that read the same tensor, by role.
_READS = {
    **dict.fromkeys(("query", "key", "value", "qkv"), "attention"),
    **dict.fromkeys(("gate", "up", "gate_up", "router"), "mlp"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """One micro batch through the model: `tokens` of it in all, `length` of one sample."""

    model: Architecture
    plan: Plan
    recipe: MemorySettings
    formats: Formats
    length: int

    @property
    def tokens(self) -> int:
        """Tokens that go through the decoder at once."""
        return self.length * self.plan.micro_batch * self.recipe.rows

    @property
    def kept(self) -> int:
        """What the forward pass of all layers keeps for the backward pass."""
        each = self._checkpoint if self.plan.checkpointing else self.layer
        if self.plan.tuning is not Tuning.PARTIAL:
            return self.model.layers * each
        trained = trained_layers(self.model, self.recipe)
        if self.recipe.trained_layers >= 0:
            return trained * each  # nothing goes backward through the layers before
        again = self.plan.checkpointing and not self.recipe.code.checkpoints_trained_layers
        after = each if again else self._frozen_layer
        return trained * each + (self.model.layers - trained) * after

    @property
    def _checkpoint(self) -> int:
        """The input of one layer."""
        return self.tokens * self.model.hidden * self.formats.hidden_bytes

    @property
    def cast_head(self) -> int:
        """The copy of a frozen head in fp32 that autocast keeps from the logits to their gradient.

        Autocast caches the copies of trained weights alone. A loss in tiles or chunks casts those
        rows of the head that it is at, and counts them itself.
        """
        formats = self.formats
        frozen = self.plan.tuning is Tuning.LORA and not self._saves_head
        wide = formats.autocast and formats.base_bytes == _FP32
        if not (frozen and wide and self.largest_logits):
            return 0
        return self.model.vocab * self.model.hidden * formats.computed_bytes

    @property
    def _saves_head(self) -> bool:
        """Return whether the output head is trained beside an adapter."""
        return self.recipe.lora is not None and "lm_head" in self.recipe.lora.saved

    @property
    def layer(self) -> int:
        """What one layer keeps when it is not checkpointed."""
        per_token = self._norms + self._linear_inputs + self._attention + self._mlp + self._dora
        return self.tokens * per_token + self._adapter_copies

    @property
    def _frozen_layer(self) -> int:
        """What one layer keeps that gradients go through and whose matrices have none."""
        return self.tokens * (self._norms + self._attention + self._mlp)

    @property
    def working(self) -> int:
        """Gradients of activations while one layer goes backward."""
        model, size = self.model, self.formats.computed_bytes
        if FusedPart.MLP in self._fused.parts:  # gate's and up's are where their results were
            dropped = size * model.hidden if self._drops else 0
            return self.tokens * (self._inner * size + 8 * model.hidden + dropped)
        copies = _FP32 if self._casts_inputs else size
        return self.tokens * (
            2 * self._inner * size + model.intermediate * copies + 8 * model.hidden
        )

    @property
    def dora_working(self) -> int:
        """What DoRA makes for the norms of one matrix and drops.

        An identity, its product with the adapter, that in the inputs' format, times the scale, and
        its sum with the weight. Source: peft 0.21, tuners/lora/dora.py.
        """
        lora = self.recipe.lora
        if lora is None or not lora.dora:
            return 0
        return max(
            (self._dora_working(one) for one in targeted(self.model, lora)),
            default=0,
        )

    def _dora_working(self, linear: Linear) -> int:
        held, size = self.formats.trained_bytes, self._adapter_bytes
        square, product = linear.inputs**2, linear.inputs * linear.outputs
        unpacked = self.plan.is_quantized or size != self.formats.base_bytes
        made = held * product
        made += size * product * ((1 if size != held else 0) + (1 if unpacked else 0))
        return max(held * square + held * product, made + 2 * size * product)

    @property
    def attention_workspace(self) -> int:
        """What flash attention's backward takes: dq in fp32, and k and v expanded to all heads."""
        model = self.model
        expanded = 0 if model.kv_heads == model.heads else 2 * model.query
        size = self.formats.computed_bytes
        return self.tokens * (_FP32 * model.query + expanded * size + _FP32 * model.heads)

    @property
    def objective_loss(self) -> ObjectiveLoss | None:
        """The loss of a framework that has its own; None where it is the model's cross entropy."""
        objective, plan = self.recipe.objective, self.plan
        if objective is None:
            return None
        whole = plan.tuning is Tuning.FULL and Part.LANGUAGE_MODEL not in (plan.frozen or ())
        return ObjectiveLoss(
            objective=objective,
            tokens=self._scored,
            hidden=self.model.hidden,
            vocabulary=self.model.vocab + self.recipe.new_tokens,
            formats=self.formats,
            trains_head=whole or self._saves_head,
        )

    @property
    def _scored(self) -> int:
        """Tokens that have a loss: of generated rows the completions alone."""
        completion = self.plan.completion_length
        return self.tokens if completion is None else self.tokens * completion // self.length

    @property
    def generation(self) -> GenerationPass | None:
        """The generation of the rows; None where the model generates none."""
        plan, generation = self.plan, self.recipe.generation
        if generation is None or generation.by_engine:
            return None
        if plan.completion_length is None or plan.generation_batch is None:
            return None
        return GenerationPass(
            model=self.model,
            formats=self.formats,
            rows=plan.generation_batch,
            prompt=self.length - plan.completion_length,
            completion=plan.completion_length,
            inner=self._inner,
            autocast=self.generates_in_autocast,
            sampled_bytes=generation.sampled_bytes,
        )

    @property
    def generates_in_autocast(self) -> bool:
        """Return whether the model is autocast while it generates."""
        generation = self.recipe.generation
        bare = self.plan.tuning is not Tuning.LORA
        return self.formats.autocast and bool(generation and (bare or generation.adapter_autocast))

    @property
    def loss_forward(self) -> int:
        """Logits, their fp32 copy and log-probabilities."""
        own = self.objective_loss.forward if self.objective_loss else None
        if own is not None:
            return own
        if self._in_chunks:
            return self._logits * self.formats.computed_bytes + self._kept_of_chunks
        if self.plan.loss_kernel is LossKernel.FUSED:
            return self._fused_loss
        if self.recipe.loss_chunk:
            return _CHUNKED_FORWARD * self._logits * self._loss_size
        size = self.formats.computed_bytes
        return self._logits * (size + _FP32 + (_FP32 if size < _FP32 else 0))

    @property
    def loss_backward(self) -> int:
        """Log-probabilities and the gradients of log-probabilities and logits, all in fp32."""
        own = self.objective_loss.backward if self.objective_loss else None
        if own is not None:
            return own
        if self._in_chunks:
            size = self.formats.computed_bytes
            gradients = size if self.recipe.compiled else 2 * _FP32 + size
            return max(self._kept_of_chunks, self._logits * size) + (
                self._logits // _CHUNKS * gradients
            )
        if self.plan.loss_kernel is LossKernel.FUSED:
            return self._fused_loss
        if self.recipe.loss_chunk:
            return _CHUNKED_BACKWARD * self._logits * self._loss_size
        return 3 * self._logits * _FP32

    @property
    def loss_kept(self) -> int:
        """What of the loss stays while the layers go backward: a loop that holds on to logits."""
        fused = self.plan.loss_kernel is LossKernel.FUSED
        held = self.recipe.loss_chunk and not fused
        return _CHUNKED_FORWARD * self._logits * self._loss_size if held else 0

    @property
    def largest_logits(self) -> int:
        """The logits of a micro batch in fp32, where they exist at once."""
        objective = self.recipe.objective
        whole = objective is None or (objective.tiles is None and objective.has_logits)
        at_once = self.plan.loss_kernel is not LossKernel.FUSED and not self.recipe.loss_chunk
        at_once = at_once and whole
        return self._logits * _FP32 if at_once else 0

    @property
    def tower(self) -> int:
        """What a vision or audio tower keeps (gradients go through it) or works with."""
        tower = self.model.tower
        if tower is None:
            return 0
        patches = self._patches
        per_layer = patches * (10 * tower.hidden + 3 * tower.intermediate)
        return per_layer * self.formats.computed_bytes * (tower.layers if self._tower_kept else 2)

    @property
    def _tower_kept(self) -> bool:
        """Return whether all layers of a tower keep what they need to go backward.

        A framework may checkpoint no layer without a trained parameter, and PEFT requires a
        gradient of the tower's input if layers are checkpointed and nothing is quantized.
        """
        plan = self.plan
        if plan.tuning is Tuning.FULL:
            return Part.VISION_TOWER not in (plan.frozen or ()) and not plan.checkpointing
        reached = plan.tuning is Tuning.LORA and plan.quantization is Quantization.NONE
        only_trained = self.recipe.code.checkpoints_trained_layers
        return bool(reached and plan.checkpointing and only_trained)

    @property
    def _patches(self) -> int:
        tower = self.model.tower
        if tower is None:
            return 0
        if tower.kind == "audio":
            return 1500 * self._rows  # 30 s of sound
        pixels = self.plan.image_pixels or 768 * 768
        per_image = pixels // tower.patch**2
        most = self.length * tower.merge**2  # a sample holds no more image tokens than tokens
        return min(per_image * max(1, self.recipe.images), most) * self._rows

    @property
    def _rows(self) -> int:
        return self.plan.micro_batch * self.recipe.rows

    @property
    def _norms(self) -> int:
        size = self.formats.computed_bytes
        model = self.model
        kept = _FP32 if not model.layer_norm or self.formats.autocast else size
        attended = model.query + model.key_value if model.qk_norms else 0
        return (2 * model.hidden + attended) * kept

    @property
    def _inner(self) -> int:
        return self.model.intermediate * max(1, self.model.expert_tokens)

    @property
    def _casts_inputs(self) -> bool:
        """Return whether LoRA turns its inputs into fp32 (PEFT, without autocast)."""
        wider = self.formats.trained_bytes > self.formats.computed_bytes
        return self.recipe.lora is not None and wider and not self.formats.autocast

    @property
    def _linear_inputs(self) -> int:
        size = self.formats.computed_bytes
        if self.plan.tuning is not Tuning.LORA:
            matrices = self.model.linears
            if self.formats.autocast and self.formats.base_bytes > size:
                return size * sum(self._input(m) for m in matrices)  # a cast for each matrix
            return size * self._distinct(matrices)
        fused = self._fused
        adapted = targeted(self.model, self.recipe.lora)
        kept = fused.kept_inputs(
            size=size, dropout=self._drops, attention_keeps_output=not self._scores_whole
        )
        return kept + self._adapted_inputs(tuple(m for m in adapted if m not in fused.matrices))

    def _adapted_inputs(self, matrices: tuple[Linear, ...]) -> int:
        """Return what PEFT's layers keep of a token before these matrices."""
        size = self.formats.computed_bytes
        if self._casts_inputs:
            return _FP32 * sum(self._input(m) for m in matrices)
        if self._drops and self.recipe.code.dropout_per_matrix:
            return (size + 1) * sum(self._input(m) for m in matrices)
        if self.formats.autocast and self.formats.trained_bytes > size:
            return size * sum(self._input(m) for m in matrices)
        return (size + (1 if self._drops else 0)) * self._distinct(matrices)

    @property
    def _drops(self) -> bool:
        return self.recipe.lora is not None and self.recipe.lora.dropout > 0

    @property
    def _fused(self) -> FusedLora:
        return fused_lora(self.model, self.plan, self.recipe.lora)

    @property
    def _adapter_copies(self) -> int:
        """What kernels keep of a layer's adapters, which they compute with in 16 bits."""
        lora, size = self.recipe.lora, self.formats.computed_bytes
        if lora is None or self.formats.trained_bytes <= size:
            return 0
        return self._fused.copies(rank=self.plan.lora_rank or lora.rank, size=size)

    @property
    def _adapter_bytes(self) -> int:
        """The size of what an adapter computes with."""
        return self.formats.trained_bytes if self._casts_inputs else self.formats.computed_bytes

    @property
    def _dora(self) -> int:
        """The products of weight and adapter, which DoRA scales by what it trains."""
        lora = self.recipe.lora
        if self.plan.tuning is not Tuning.LORA or lora is None or not lora.dora:
            return 0
        own = self.formats.computed_bytes if not lora.dropout else self._adapter_bytes
        return (own + self._adapter_bytes) * sum(one.outputs for one in targeted(self.model, lora))

    def _input(self, linear: Linear) -> int:
        return linear.inputs * (max(1, self.model.expert_tokens) if linear.count > 1 else 1)

    def _distinct(self, matrices: tuple[Linear, ...]) -> int:
        inputs = {_READS.get(m.role, m.role): self._input(m) for m in matrices}
        return sum(inputs.values())

    @property
    def _attention(self) -> int:
        model, size = self.model, self.formats.computed_bytes
        if self._scores_whole:
            return size * 3 * model.query + model.heads * self.length * (_FP32 + size)
        if self.recipe.attention is Attention.FLASH:
            return size * 2 * (model.query + model.key_value) + _FP32 * model.heads
        kept = 4 * model.query
        if self.recipe.code.keeps_qkv:
            kept += model.query + model.key_value
        return size * kept + _FP32 * model.heads

    @property
    def _scores_whole(self) -> bool:
        """Return whether attention makes all scores at once."""
        return self.recipe.attention is Attention.EAGER or self.model.softcapped

    @property
    def _mlp(self) -> int:
        size = self.formats.computed_bytes
        if FusedPart.MLP in self._fused.parts:
            return 2 * self._inner * size
        if self.model.gated:
            return 3 * self._inner * size
        return (_GELU_COPIES if self.model.unfused_gelu else 1) * self._inner * size

    @property
    def _logits(self) -> int:
        return self.tokens * (self.model.vocab + self.recipe.new_tokens)

    @property
    def _loss_size(self) -> int:
        return _FP32 if self.formats.autocast else self.formats.computed_bytes

    @property
    def _in_chunks(self) -> bool:
        """Return whether logits are computed chunk by chunk and all kept."""
        fused = self.plan.loss_kernel is LossKernel.FUSED
        return fused and self.recipe.code.chunked_loss

    @property
    def _kept_of_chunks(self) -> int:
        """Log-probabilities in fp32; a compiled loss keeps the logits alone."""
        return 0 if self.recipe.compiled else self._logits * _FP32

    @property
    def _fused_loss(self) -> int:
        hidden = self.tokens * self.model.hidden
        return _FUSED_COPIES * hidden * _FP32
