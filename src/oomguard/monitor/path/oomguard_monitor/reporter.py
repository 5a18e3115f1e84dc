"""The reporter of one process: what the hooks tell it becomes lines; it never raises."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time

from . import lines, oom, phases, usage
from .job_state import MonitorState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .channel import Channel

#: Steps of a process that are all reported, however fast: enough to see a leak in.
FIRST_STEPS = 16
#: Seconds between two reports of later steps, or of repeated phases.
INTERVAL_S = 0.25
#: Kept to be given up at an OOM, so that the report of a host OOM finds usage. It is
#: larger than any malloc threshold for mmap, so giving it up returns it to the system.
_RESERVE_BYTES = 2 << 20
_PHASE, _SEEN, _TOLD = "_oomguard_phase", "_oomguard_seen", "_oomguard_told"


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a fault of the reporter from the job: it is reported once, then all is taken out."""

    @functools.wraps(method)
    def safe(self: Reporter, *args: Any) -> Any:
        if self.aside:
            return None
        try:
            return method(self, *args)
        except MemoryError:  # the job's trouble, and no fault of ours
            return None
        except Exception as error:  # noqa: BLE001 - see above
            self.step_aside(error)
            return None

    return safe


class Reporter:
    """Keeps the state, decides what is worth a line, and sends it.

    `quiet` processes are children that torch or the job made for other work than training:
    they say nothing but failures until they make an optimizer step of their own.
    """

    def __init__(self, torch: Any, channel: Channel, *, quiet: bool) -> None:
        self.aside = False
        self.state = MonitorState()
        self.quiet = quiet
        self.uninstall: Callable[[], None] = lambda: None
        self.before_line: Callable[[], None] = lambda: None
        self._torch, self._channel = torch, channel
        self._entered: set[str] = set()
        self._steps = 0
        self._last_step = self._last_phase = time.monotonic()
        self._reserve: bytearray | None = bytearray(_RESERVE_BYTES)
        self._peak_data_bytes = 0

    @_guarded
    def hello(self) -> None:
        """Say that torch is here."""
        if self.quiet:
            return
        self._send(
            "hello",
            argv0=(getattr(sys, "argv", None) or [""])[0],
            python=".".join(str(part) for part in sys.version_info[:3]),
            torch=str(getattr(self._torch, "__version__", "")),
            ppid=os.getppid(),
        )

    @_guarded
    def enter(self, phase: str) -> str | None:
        """A hooked function begins; give what `leave` and `failed` need."""
        before = self.state.enter(phase)
        if phase == phases.BACKWARD:
            self._sample()
        if before not in {None, phase}:
            self._note_phase(phase)
        return before

    @_guarded
    def leave(self, phase: str, before: str | None) -> None:
        """A hooked function came back."""
        self.state.leave(phase, before)
        if phase == phases.BACKWARD:
            self._sample()
        if phase == phases.OPTIMIZER and self.state.finish_step():
            self._note_step()

    @_guarded
    def failed(self, phase: str, before: str | None, error: BaseException) -> None:
        """An exception passes a hooked function. The innermost hook knows the phase best."""
        now = phase if before is None else self.state.phase
        self.state.leave(phase, before)
        if not isinstance(error, StopIteration):
            self.passed(error, now)

    @_guarded
    def passed(self, error: BaseException, phase: str) -> None:
        """Report an OOM that the program may yet catch."""
        if getattr(error, _PHASE, None) is None:
            _mark(error, _PHASE, phase)
        found = oom.find(error)
        if found is not None and not hasattr(found.error, _SEEN):
            _mark(found.error, _SEEN, True)
            self._oom(found, phase, uncaught=False)

    @_guarded
    def ended(self, error: BaseException) -> None:
        """An exception ended the process, or a thread of it."""
        if hasattr(error, _TOLD):
            return
        _mark(error, _TOLD, True)
        found = oom.find(error)
        culprit = error if found is None else found.error
        phase = getattr(culprit, _PHASE, None) or getattr(error, _PHASE, None)
        if found is not None:
            self._oom(found, phase, uncaught=True)
            return
        frames = lines.frames_of(error)
        self._send(
            "error",
            phase=phase or self._phase_of(frames),
            exception=lines.type_name(error),
            message=lines.cut(oom.text_of(error)),
            frames=lines.shown(frames),
        )

    @_guarded
    def fetched(self, batch: Any) -> None:
        """A batch was fetched, for now or for later."""
        before = self.state.phase
        self.state.fetched(batch)
        if self.state.phase != before:
            self._note_phase(self.state.phase)

    @_guarded
    def prepared(self) -> None:
        """A pass over the data is over."""
        if not self.quiet and self.state.phase in phases.BEFORE_TRAINING:
            self._send("phase", phase=self.state.phase, memory=usage.measure(self._torch))

    @_guarded
    def trains_on(self, batch: Any) -> None:
        """A training step begins."""
        self.state.trains_on(batch)

    @_guarded
    def probed(self, tokens: int, longest: int) -> None:
        """The steps of a probe are done; see `probe.ProbeHook`."""
        taken = usage.measure(self._torch)
        self._send("probe", memory=taken, tokens=tokens or None, longest=longest or None)

    @_guarded
    def begin_training(self) -> None:
        """Gradients were cleared."""
        before = self.state.phase
        self.state.begin_training()
        if self.state.phase != before:
            self._note_phase(self.state.phase)

    @_guarded
    def forked(self) -> None:
        """In a forked child: do not speak for the parent."""
        self._channel.forked()
        self.state.forked()
        self._entered.clear()
        self.quiet = True

    @_guarded
    def bye(self) -> None:
        """The interpreter shuts down in good order."""
        if not self.quiet:
            self._send("bye", memory=usage.measure(self._torch))
        self._channel.close()

    def step_aside(self, error: BaseException) -> None:
        """Report a fault of the reporter, and take everything out of the job."""
        if self.aside:
            return
        self.aside = True
        try:
            self.uninstall()
            where = lines.shown(lines.frames_of(error))[-1:]
            self._send("fault", message=lines.cut(f"{lines.type_name(error)}: {error} {where}"))
        except Exception:  # noqa: BLE001, S110 - there is nobody left to tell
            pass

    def _note_phase(self, phase: str) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        again = phase in phases.ENCLOSING and now - self._last_phase >= INTERVAL_S
        if phase in self._entered and not again:
            return
        self._entered.add(phase)
        self._last_phase = now
        self._send("phase", phase=phase, memory=usage.measure(self._torch))

    def _note_step(self) -> None:
        now = time.monotonic()
        self._steps += 1
        if self._steps > FIRST_STEPS and now - self._last_step < INTERVAL_S:
            return
        if self.quiet:
            self.quiet = False
            self.hello()
        seconds, self._last_step = now - self._last_step, now
        peak_bytes, self._peak_data_bytes = self._peak_data_bytes, 0
        self._send(
            "step",
            memory={**usage.measure(self._torch), "peak_data_bytes": peak_bytes},
            seconds=seconds,
            shapes=_listed(self.state.largest()),
        )

    def _sample(self) -> None:
        """Note what stands in memory around a backward pass: the most of a step, or nearly."""
        self._peak_data_bytes = max(self._peak_data_bytes, usage.data_bytes())

    def _oom(self, found: oom.FoundOom, phase: str | None, *, uncaught: bool) -> None:
        """Report an OOM, if need be without frames and memory, out of the reserve."""
        self._reserve = None
        try:
            try:
                frames = lines.frames_of(found.error)
                self._send_oom(found, phase or self._phase_of(frames), uncaught, frames)
            except MemoryError:
                self._send_oom(found, phase or self.state.phase, uncaught, None)
        finally:
            self._reserve = _reserve()

    def _send_oom(
        self,
        found: oom.FoundOom,
        phase: str,
        uncaught: bool,
        frames: list[tuple[str, int, str]] | None,
    ) -> None:
        self._send(
            "oom",
            phase=phase,
            exception=lines.type_name(found.error),
            message=lines.cut(found.text),
            uncaught=uncaught,
            frames=[] if frames is None else lines.shown(frames),
            memory={} if frames is None else usage.measure(self._torch),
            shapes={} if frames is None else _listed(self.state.shapes),
            device=found.device,
            requested_bytes=oom.requested_bytes(found.text),
            capacity_bytes=oom.capacity_bytes(found.text),
        )

    def _phase_of(self, frames: list[tuple[str, int, str]]) -> str:
        return phases.of_frames(
            ((file, function) for file, _, function in frames), self.state.phase
        )

    def _send(self, type_: str, phase: str | None = None, **fields: object) -> None:
        self.before_line()
        line = lines.heading(type_, self._torch, os.environ)
        line.update(phase=phase or self.state.phase, step=self.state.step, **fields)
        if not self._channel.send(lines.encode(line)) and not self.aside:
            self.aside = True
            self.uninstall()


def _mark(error: BaseException, name: str, value: object) -> None:
    """Note on the exception itself what is known of it: no reference of ours keeps it alive."""
    with contextlib.suppress(Exception):  # a class without room for it is told twice
        setattr(error, name, value)


def _listed(shapes: dict[str, tuple[int, ...]]) -> dict[str, list[int]]:
    return {name: [int(size) for size in shape] for name, shape in shapes.items()}


def _reserve() -> bytearray | None:
    try:
        return bytearray(_RESERVE_BYTES)
    except MemoryError:
        return None
