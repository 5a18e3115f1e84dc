"""What generating completions with the trained model itself takes, all of a batch at once.

All figures are bytes. Source: transformers 5.23, generation/utils.py (_prefill, _sample),
cache_utils.py (DynamicLayer), integrations/sdpa_attention.py (repeat_kv).
"""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.estimate.architecture import Architecture
from oomguard.estimate.formats import Formats

_FP32 = 4
#: Of a layer's MLP without gradients: the activated gate, the other half, and their product.
_MLP_COPIES = 3
#: Of the hidden states: the embeddings, the residual, its norm in fp32 and as computed with.
_HIDDEN_COPIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationPass:
    """`rows` completions of `completion` tokens after `prompt` tokens, without gradients.

    `inner` is the width of what an MLP computes for one token; `autocast` says that the model
    generates in mixed precision, `sampled_bytes` what sampling takes beside each logit.
    """

    model: Architecture
    formats: Formats
    rows: int
    prompt: int
    completion: int
    inner: int
    autocast: bool
    sampled_bytes: int

    @property
    def prefill(self) -> int:
        """The pass over the prompts: their cache, and one layer at work."""
        tokens, size = self.rows * self.prompt, self._computed
        wide = max(self.formats.base_bytes, size)
        layer = _MLP_COPIES * self.inner * size + _HIDDEN_COPIES * self.model.hidden * wide
        mask = self.rows * self.prompt**2  # prompts of different lengths are padded
        return self._cache(self.prompt) + mask + max(tokens * layer, self._sampling)

    @property
    def decoding(self) -> int:
        """The last token: the whole cache, and the layer that appends to its own.

        Keys and values that several heads share are counted as repeated for each of them: 5.23
        attends to them as they are (pack_gqa), earlier versions do not.
        """
        length = self.prompt + self.completion
        whole = self._cache(length)
        shared = self.model.kv_heads < self.model.heads
        repeated = 2 * self.rows * length * self.model.query * self._computed if shared else 0
        return whole + max(whole // self.model.layers // 2 + repeated, self._sampling)

    @property
    def _computed(self) -> int:
        return self.formats.computed_bytes if self.autocast else self.formats.base_bytes

    @property
    def _sampling(self) -> int:
        """The logits of one token a row; autocast's are converted to fp32."""
        size = _FP32 if self.autocast else self._computed
        return self.rows * self.model.vocab * (size + self.sampled_bytes)

    def _cache(self, length: int) -> int:
        """Keys and values of all layers; autocast leaves rotated keys as wide as the weights."""
        both = self._computed + max(self._computed, self.formats.base_bytes)
        return self.model.layers * self.rows * length * self.model.key_value * both
