"""In which format the weights of a checkpoint that is quantized already are stored."""

from __future__ import annotations

from dataclasses import dataclass

from oomguard.job.plan import Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFormat:
    """The format of a quantized checkpoint.

    `method` is transformers' name for it (`quant_method`), "" where only the checkpoint's name
    tells. `quantization` is None for a format whose size is not modelled; `described` names it.
    """

    method: str
    described: str
    quantization: Quantization | None = None
