"""Ask an installed LitGPT for one of its own named configs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping

_ASK = (
    "import dataclasses, json, sys\n"
    "from litgpt.config import Config\n"
    "print(json.dumps(dataclasses.asdict(Config.from_name(sys.argv[1])), default=str))"
)
_TIMEOUT_S = 60


def named(python: str) -> Callable[[str], Mapping[str, object] | None]:
    """Return a function that looks up a name in this Python's LitGPT (None if unknown)."""

    def ask(checkpoint: str) -> Mapping[str, object] | None:
        name = checkpoint.rstrip("/").rsplit("/", 1)[-1]
        try:
            answer = subprocess.run(
                [python, "-c", _ASK, name],
                capture_output=True,
                check=True,
                timeout=_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
            )
            document = json.loads(answer.stdout)
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
        return document if isinstance(document, dict) else None

    return ask
