# mypy: disable-error-code="import-not-found,misc,no-any-return,unused-ignore"
# Checked without torch: what comes from it, and what derives from it, is Any.
"""Builds vision and audio towers with few of their layers: most of them are alike."""

from __future__ import annotations

from typing import Any

from torch import nn

from .built import Depth, Unsupported, reduced

#: The modules that are towers, and the term of the peak that each is.
TERMS = {
    "visual": "vision_tower",
    "vision_tower": "vision_tower",
    "vision_model": "vision_tower",
    "audio_tower": "audio_tower",
}
#: Where the configs of towers say how many layers there are.
_DEPTHS = (
    ("vision_config", "depth"),
    ("vision_config", "num_hidden_layers"),
    ("audio_config", "encoder_layers"),
)
#: Layers of these numbers do what the others do not; where some feed the text, all are built.
_APART = "fullatt_block_indexes"
_FEEDING = ("deepstack_visual_indexes", "intermediate_layers_indices", "vision_feature_layer")


def shorten(config: Any) -> Depth | None:
    """Set a tower's depth to few layers; None where there is no tower, or all have to be built.

    Layers whose attention sees the whole image come last then: what a layer keeps and works with
    does not depend on its place.
    """
    for part, name in _DEPTHS:
        tower = getattr(config, part, None)
        if isinstance(getattr(tower, name, None), int):
            return None if _feeds(config, tower) else _shorten(tower, name)
    return None


def _feeds(config: Any, tower: Any) -> bool:
    return any(getattr(owner, key, None) for owner in (config, tower) for key in _FEEDING)


def _shorten(tower: Any, name: str) -> Depth:
    full = getattr(tower, name)
    apart = len([index for index in getattr(tower, _APART, None) or () if index < full])
    alike = reduced(full - apart, 1)
    if apart:
        setattr(tower, _APART, list(range(alike, alike + apart)))
    setattr(tower, name, alike + apart)
    return Depth(stack="", full=full, built=alike + apart)


def stack(model: nn.Module, length: int, *, tower: bool) -> str:
    """Return the module list with this number of repeated layers, of a tower or the text model.

    Raises:
        Unsupported: if it was not found.
    """
    for path, module in model.named_modules():
        inside = any(f".{name}." in f".{path}." for name in TERMS)
        if isinstance(module, nn.ModuleList) and len(module) == length and inside is tower:
            return path
    raise Unsupported(f"the {'tower' if tower else 'model'}'s repeated layers were not found")
