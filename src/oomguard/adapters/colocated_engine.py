"""vLLM in the training processes: the share of each GPU that it claims, and when it holds it.

Source: vllm 0.11, config/cache.py (gpu_memory_utilization), v1/worker/gpu_worker.py
(determine_available_memory): weights, cache and its own activations together are that share of the
whole GPU, whatever else is on it. trl 1.16.0, generation/vllm_generation.py: with its sleep mode,
it holds them only while it generates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from oomguard.adapters.fields import Binding, Edits, Key
from oomguard.configfile.layered import Settings

#: The value of `mode` for a vLLM that runs elsewhere.
SERVER = "server"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKeys:
    """What a framework calls the settings; `awake` and `asleep` are the values of `sleeps`."""

    used: Key[bool]
    mode: Key[str]
    share: Key[float]
    sleeps: Key[bool] | Key[int]
    asleep: bool | int = True
    awake: bool | int = False

    def is_colocated(self, settings: Settings) -> bool:
        """Return whether vLLM generates on the GPUs that train."""
        return self.used.of(settings) and self.mode.of(settings) != SERVER

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Return the bindings of its share and of its sleep; None where there is none."""
        return (
            self._binding("engine_share", self.share.of, lambda value: {self.share: value}),
            self._binding(
                "engine_sleeps",
                lambda settings: bool(self.sleeps.of(settings)),
                lambda value: {self.sleeps: self.asleep if value else self.awake},
            ),
        )

    def _binding(
        self, field: str, read: Callable[[Settings], object], edits: Callable[[object], Edits]
    ) -> Binding:
        return Binding(
            field=field,
            read=lambda settings: read(settings) if self.is_colocated(settings) else None,
            edits=lambda settings, value: edits(value) if self.is_colocated(settings) else None,
        )
