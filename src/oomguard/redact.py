"""Mask secrets in text that others may read."""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "***"

_NAMES = r"[\w.-]*(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|credential)s?"
_RULES = (
    # name=value, --name value, name: value, "name": "value"
    re.compile(
        rf"(?P<keep>(?<![\w.-])(?:--)?{_NAMES}[\"']?(?:\s*[=:]\s*|\s+)[\"']?)"
        r"(?P<hide>(?!None\b|null\b|true\b|false\b|True\b|False\b|--)[^\s\"',}]{4,})",
        re.IGNORECASE,
    ),
    # the password in a URL
    re.compile(r"(?P<keep>\b[a-z][a-z0-9+.-]*://[^\s/:@]+:)(?P<hide>[^\s/@]+)(?=@)", re.IGNORECASE),
    # tokens with a known format: Hugging Face, GitHub, OpenAI-like, AWS
    re.compile(r"(?P<keep>\b)(?P<hide>hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,})"),
    re.compile(r"(?P<keep>\b)(?P<hide>sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16})"),
)
_NAMED = re.compile(rf"(?:--)?{_NAMES}", re.IGNORECASE)


def redact(text: str) -> str:
    """Mask what looks like a secret in free text: named values, URL passwords, known tokens."""
    for rule in _RULES:
        text = rule.sub(lambda match: match["keep"] + MASK, text)
    return text


def redact_argv(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Mask secrets in a command line, also if the value is a separate argument."""
    masked: list[str] = []
    for argument in argv:
        follows = bool(masked) and _NAMED.fullmatch(masked[-1]) and masked[-1].startswith("-")
        masked.append(MASK if follows and not argument.startswith("--") else redact(argument))
    return tuple(masked)


def redact_env(env: Mapping[str, str]) -> dict[str, str]:
    """Mask secrets in environment variables, by their names and by their values."""
    return {name: MASK if _NAMED.fullmatch(name) else redact(value) for name, value in env.items()}
