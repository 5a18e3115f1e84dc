"""The values of a script's own code: those that are counted, and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from oomguard.adapters.hf.script_code import (
    COMPUTED,
    MODEL,
    SetInCode,
    alike,
    defaults_in,
    settings_in,
)
from oomguard.configfile.flags import Flags
from oomguard.configfile.layered import Settings
from oomguard.job.unmodelled import Direction, Unmodelled

#: What is counted where neither a flag nor the code gives a value.
_COUNTED: Mapping[str, object] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "optim": "adamw_torch",
    "attn_implementation": "sdpa",
}
#: Values whose memory is that of another one.
_EQUAL = (
    (re.compile(r"flash_attention_\d"), "sdpa"),
    (re.compile(r"adamw_(torch_fused|hf|apex_fused)"), "adamw_torch"),
)
#: BitsAndBytesConfig's own defaults.
_BNB_DEFAULTS = {"bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": False}
_OF_ADAPTER = frozenset({"lora_r", "lora_target_modules"})
#: Settings that are named by another one of the same call.
_NAMED_ELSEWHERE = frozenset(
    {"lora_alpha", "lora_dropout", "lora_modules_to_save", "use_dora", *_BNB_DEFAULTS}
)


def code_flags(code: str, settings: Settings) -> Flags:
    """Return what a script's code sets, spelled as the flags that would set it.

    What it takes from a flag of another name is that flag's value, or its default.

    A setting that it gives several values, or computes, is left out; so are those of the call that
    loads a model if there are several.
    """
    words: list[str] = []
    for name, value in _values(_resolved(code, settings)).items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"--{name}", *map(str, values)]
    return Flags(args=tuple(words))


def flags_read(code: str) -> frozenset[str]:
    """Return the flags of other names from which a script takes settings that are read."""
    return frozenset(one.flag for one in settings_in(code) if one.flag)


def _resolved(code: str, settings: Settings) -> tuple[SetInCode, ...]:
    """Return what a script sets, with the values of the flags that it is taken from."""
    defaults = defaults_in(code)
    found = []
    for one in settings_in(code):
        spelled = (one.flag, one.flag.replace("_", "-"))
        stated = [settings.get(name) for name in spelled if one.flag and settings.has(name)]
        value = stated[0] if stated else defaults.get(one.flag, one.value)
        if stated and defaults.get(one.flag) is True:  # a switch may turn it off
            value = COMPUTED
        if value is not COMPUTED or one.flag not in alike(one.name):
            found.append(replace(one, value=value))
    return tuple(found)


def _values(found: tuple[SetInCode, ...]) -> dict[str, object]:
    places: dict[str, list[SetInCode]] = {}
    for one in found:
        places.setdefault(one.name, []).append(one)
    loads = {one.line for one in found if one.name == MODEL and one.by_load}
    values = {
        name: them[0].value
        for name, them in places.items()
        if len({str(one.value) for one in them}) == 1
        and not (len(loads) > 1 and any(one.by_load for one in them))
    }
    if values.get("load_in_4bit") is True:
        values = {**_BNB_DEFAULTS, **values}
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    items = value if isinstance(value, list | tuple) and value else [value]
    return all(isinstance(item, str | int | float) and item != "" for item in items)


def read_from_code(settings: Settings, code: str) -> str | None:
    """Return a note on what is counted because a script's code sets it; None for nothing."""
    found = [one for one, is_counted in _differing(settings, code) if is_counted]
    lines = ", ".join(f"{one.name} (line {one.line})" for one in found)
    return f"read from the script's code: {lines}" if found else None


def set_by_code(settings: Settings, code: str) -> Iterator[Unmodelled]:
    """Yield what a script's code sets otherwise than it is counted, or only in a branch.

    A value that the code takes from a flag of the same name is the flag's own.
    """
    for one, is_counted in _differing(settings, code):
        if is_counted and not one.in_branch:
            continue
        value = "" if one.value is COMPUTED else f" to {one.value}"
        how = "in a branch: counted as taken" if is_counted else "which is not counted"
        yield Unmodelled(
            key=one.name,
            effect=f"the script sets it{value} in its line {one.line}, {how}",
            direction=Direction.EITHER,
        )


def _differing(settings: Settings, code: str) -> Iterator[tuple[SetInCode, bool]]:
    """Yield what code sets otherwise than flags and defaults do, and whether that is counted."""
    said: set[str] = set()
    stated, used = replace(settings, code=Flags()), settings.code
    for one in _resolved(code, stated):
        by_flag = stated.has(one.name)
        counted = stated.get(one.name) if by_flag else _COUNTED.get(one.name)
        is_known = one.name in said or one.name in _NAMED_ELSEWHERE
        # What of the model and of an adapter is not counted is shown, or named, as a whole.
        is_whole = one.name == MODEL or one.name in _OF_ADAPTER
        is_known = is_known or (is_whole and not used.has(one.name))
        if is_known or (by_flag and one.is_default) or _same(one.value, counted):
            continue
        said.add(one.name)
        yield one, used.has(one.name) and not by_flag


def _same(value: object, counted: object) -> bool:
    """Return whether code and flag give the same value; an unset one is false or nothing."""
    if value is COMPUTED:
        return False
    empty = ("", "none", "false", "no")
    said, other = (_plain(one) for one in (value, counted))
    return said == other or (said in empty and other in empty)


def _plain(value: object) -> str:
    text = str(value).lower().removeprefix("torch.")
    return next((same for pattern, same in _EQUAL if pattern.fullmatch(text)), text)
