"""Run the dry run as a child of a Python that has torch, and remember what it answered."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import platformdirs

from oomguard.estimate.combine import Traced
from oomguard.job.memory_settings import Family
from oomguard.machine.interpreter import versions_of
from oomguard.tracer import MODELS, PATH, PYTHONPATH

#: The packages whose versions decide the result of a trace.
_PACKAGES = tuple(
    dict.fromkeys([*(name for one in Family for name in one.packages), "peft", "bitsandbytes"])
)
_MOST_ANSWER_BYTES = 16 << 20


class NoTrace(Exception):  # noqa: N818  no error: the caller falls back and says why
    """Why a step could not be traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceClient:
    """One Python with torch; `versions` are those of what decides a trace."""

    python: str
    versions: Mapping[str, str]
    cache: Path | None = None

    def trace(
        self,
        model: Mapping[str, object],
        step: Mapping[str, object],
        *,
        capacity_bytes: int,
        timeout_s: float,
    ) -> Traced | NoTrace:
        """Trace a step, or give what was answered before."""
        key = self._key({"model": model, "step": step})
        known = self._recall(key, capacity_bytes)
        if known is not None:
            return known
        request = {
            "v": 1,
            "model": model,
            "capacity_bytes": capacity_bytes,
            "variants": [{"id": key, **step}],
        }
        try:
            result = _only_result(_child(self.python, request, timeout_s))
        except NoTrace as reason:
            return reason
        self._remember(key, {**result, "capacity_bytes": capacity_bytes})
        return _result(result)

    def _key(self, step: Mapping[str, object]) -> str:
        parts = [step, dict(sorted(self.versions.items())), _code()]
        return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:40]

    def _recall(self, key: str, capacity_bytes: int) -> Traced | None:
        """Return what is kept; a replay within another capacity only where the peaks answer it."""
        if self.cache is None:
            return None
        try:
            kept = json.loads((self.cache / f"{key}.json").read_bytes())
            found = _result(kept)
        except (OSError, ValueError):
            return None
        if not isinstance(found, Traced) or kept.get("capacity_bytes") == capacity_bytes:
            return found if isinstance(found, Traced) else None
        found = at_capacity(found, capacity_bytes)
        return found if found.fits_replay is not None else None

    def _remember(self, key: str, result: Mapping[str, object]) -> None:
        """Keep an estimate; a cache that cannot be written is none."""
        if self.cache is None or "estimate" not in result:
            return
        with suppress(OSError):
            self.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.cache, delete=False) as file:
                file.write(msgspec.json.encode(result))
            Path(file.name).replace(self.cache / f"{key}.json")


def tracer_of(
    pythons: Sequence[str],
    packages: Collection[str],
    also: Collection[str] = (),
    *,
    cache: Path | None = None,
) -> TraceClient | None:
    """Return the first Python that has the packages that a trace needs; None if none has them.

    The versions of those in `also` are asked for as well.
    """
    for python in dict.fromkeys(pythons):
        versions = versions_of(python, dict.fromkeys([*_PACKAGES, *packages, *also]))
        if all(name in versions for name in packages):
            return TraceClient(python=python, versions=versions, cache=cache or cache_folder())
    return None


def at_capacity(traced: Traced, capacity_bytes: int) -> Traced:
    """Return a trace whose replay is within another capacity; None where only a replay shows it."""
    unclear = traced.allocated_bytes <= capacity_bytes < traced.reserved_bytes
    fits = None if unclear else traced.reserved_bytes <= capacity_bytes
    return replace(traced, fits_replay=fits)


def cache_folder() -> Path:
    """Return where answers are kept."""
    return Path(platformdirs.user_cache_dir("oomguard")) / "predictions"


def _code() -> str:
    """Hash the dry run's own code, so that a newer one asks anew."""
    digest = hashlib.sha256()
    for path in sorted([*PATH.glob("oomguard_tracer/*.py"), *MODELS.glob("*/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _child(python: str, request: Mapping[str, object], timeout_s: float) -> dict[str, object]:
    env = {
        **os.environ,
        "PYTHONPATH": PYTHONPATH,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        done = subprocess.run(
            [python, "-m", "oomguard_tracer"],
            input=msgspec.json.encode(request),
            capture_output=True,
            check=False,
            timeout=timeout_s,
            env=env,
        )
    except subprocess.TimeoutExpired as error:
        raise NoTrace(f"the trace took longer than {timeout_s:.0f} s") from error
    except OSError as error:
        raise NoTrace(f"{python} cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise NoTrace(f"the trace failed: {' '.join(last) or done.returncode}")
    try:
        answer: dict[str, object] = json.loads(done.stdout[:_MOST_ANSWER_BYTES])
    except ValueError as error:
        raise NoTrace("the trace gave no JSON") from error
    return answer


def _only_result(answer: Mapping[str, object]) -> Mapping[str, object]:
    results = answer.get("results")
    if not isinstance(results, list) or not results or not isinstance(results[0], dict):
        raise NoTrace("the trace gave no result")
    return results[0]


def _result(result: Mapping[str, object]) -> Traced | NoTrace:
    error = result.get("error")
    if isinstance(error, dict):
        return NoTrace(str(error.get("message") or error.get("kind")))
    try:
        document = {**msgspec.convert(result["estimate"], dict[str, object])}
        return msgspec.convert({**document, "fits_replay": result.get("fits_replay")}, Traced)
    except (KeyError, msgspec.ValidationError) as broken:
        return NoTrace(f"the trace's answer is not understood: {broken}")
