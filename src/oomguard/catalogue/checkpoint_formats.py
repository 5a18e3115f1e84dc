"""Read how a checkpoint is stored that is quantized already: by its config.json, else its name.

Source: transformers 5.6.0, utils/quantization_config.py (the classes and their defaults).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from oomguard.catalogue.lookup import Model
from oomguard.job.plan import FOUR_BIT_KINDS, Quantization
from oomguard.job.stored_format import StoredFormat

#: Where configs hold it: transformers', and compressed-tensors' of before.
_KEYS = ("quantization_config", "compression_config")
_GROUPED = ("awq", "gptq")
_GROUP = 128
#: Modules that keep 16 bits in any case; a config may also name those of models of other kinds.
_KEPT_ANYWAY = frozenset({"lm_head", "score", "embed_tokens", "gate", "router"})
_OF_MULTIMODAL = frozenset(
    {"visual", "vision_tower", "vision_model", "multi_modal_projector", "merger"}
    | {"modality_projection", "audio_tower"}
)
_KEPT = ("modules_to_not_convert", "llm_int8_skip_modules")
_BY_NAME = re.compile(
    r"(?i)[-_](awq|gptq|hqq|aqlm|fp8|mxfp4|nvfp4|int[48]|bnb[-_]4bit|[48]bit)(?=[-_/]|$)"
)
#: unsloth's dynamic copies, whose names begin this ending with its own, keep modules in 16 bits.
_BNB_BY_NAME = re.compile(r"(?i)(?<!-unsloth)[-_]bnb[-_]4bit(?=[-_/]|$)")
_GROUPED_BY_NAME = re.compile(r"(?i)[-_](awq|gptq)(?=[-_/]|$)")
#: Widths behind that word, as in GPTQ-Int8, and anywhere.
_OTHER_WIDTH = re.compile(r"(?i)[-_](int|w|q)?[2368](bit|a16)?(?=[-_/]|$)")
_EIGHT = re.compile(r"(?i)(int8|8[-_]?bit|w8a)")


def stored_format(model: Model) -> StoredFormat | None:
    """Return the format of a quantized checkpoint, None if it is not quantized.

    The checkpoint's own config.json decides. A config of the catalogue is that of the base model,
    so that there the name decides.
    """
    config = _quantization_config(model.config)
    if config is None:
        found = named_format(model.name) if model.is_of_the_base else None
        kept = _is_multimodal(model.config)
    else:
        found = _from_config(config)
        kept = bool(_kept_in_half(config, model.config))
    # How many numbers keep 16 bits is not known.
    return replace(found, quantization=None) if found and kept else found


def named_format(name: str) -> StoredFormat | None:
    """Return the format that a checkpoint's name tells of; nearly all AWQ and GPTQ have 4 bits."""
    if _BY_NAME.search(name) is None:
        return None
    match = _GROUPED_BY_NAME.search(name)
    if match and not (_OTHER_WIDTH.search(name[match.start() :]) or _EIGHT.search(name)):
        method = match[1].lower()
        return StoredFormat(
            method=method,
            described=f"{method} in 4 bits, by its name",
            quantization=Quantization.PREQUANTIZED,
        )
    if _BNB_BY_NAME.search(name):
        # Whose constants may be quantized once more, which takes a tenth less.
        return StoredFormat(
            method="bitsandbytes",
            described="bitsandbytes in 4 bits, by its name",
            quantization=Quantization.NF4,
        )
    return StoredFormat(method="", described="quantized, by its name, to a width that is not known")


def _quantization_config(config: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return what a config.json says of it; a multimodal one may say it of its language model."""
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(part, Mapping):
            found = next((part[key] for key in _KEYS if part.get(key)), None)
            if isinstance(found, Mapping):
                return found
    return None


def _from_config(config: Mapping[str, object]) -> StoredFormat:
    bnb = config.get("load_in_4bit") or config.get("load_in_8bit")
    method = str(config.get("quant_method") or ("bitsandbytes" if bnb else "")).lower()
    bits = config.get("bits", config.get("w_bit"))
    group = config.get("group_size", config.get("q_group_size"))
    quantization = None
    if method in _GROUPED and (bits, group) == (4, _GROUP):
        quantization = Quantization.PREQUANTIZED
    elif method == "bitsandbytes":
        quantization = _bitsandbytes(config)
    width = "4" if config.get("load_in_4bit") else "8" if config.get("load_in_8bit") else bits
    words = [method or "in a format that is not named"]
    words += [f"in {width} bits"] if width else []
    words += [f"in groups of {group}"] if group else []
    return StoredFormat(method=method, described=" ".join(words), quantization=quantization)


def _bitsandbytes(config: Mapping[str, object]) -> Quantization | None:
    if not config.get("load_in_4bit"):
        return Quantization.INT8 if config.get("load_in_8bit") else None
    kind = str(config.get("bnb_4bit_quant_type") or "fp4").lower()  # BitsAndBytesConfig's default
    return FOUR_BIT_KINDS.get((kind, bool(config.get("bnb_4bit_use_double_quant"))))


def _is_multimodal(config: Mapping[str, object]) -> bool:
    return any(config.get(key) for key in ("vision_config", "audio_config", "visual"))


def _kept_in_half(config: Mapping[str, object], of_model: Mapping[str, object]) -> frozenset[str]:
    """Return the modules that a config.json keeps in 16 bits beside the output head."""
    lists = (config.get(key) for key in _KEPT)
    named = {str(name) for one in lists if isinstance(one, list) for name in one}
    harmless = _KEPT_ANYWAY if _is_multimodal(of_model) else _KEPT_ANYWAY | _OF_MULTIMODAL
    return frozenset(name for name in named if name.rsplit(".", 1)[-1] not in harmless)
