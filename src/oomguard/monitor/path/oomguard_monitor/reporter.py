"""Turn what the hooks see in one process into reports; nothing here ever raises."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time

from . import lines, oom, phases, usage
from .job_state import MonitorState
from .passes import FirstPasses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .channel import Channel
    from .in_place_trainer import Account

#: The first steps of a process are all reported, however fast: enough to detect a leak.
FIRST_STEPS = 16
#: Least seconds between reports of later steps, or of repeated phases.
INTERVAL_S = 0.25
#: Least seconds between reports of steps that were divided before they ran out of memory.
SPLIT_INTERVAL_S = 10.0
#: Most successions of such steps in one report.
SPLIT_SPANS = 64
#: Released at an OOM, so that the report of a host OOM has memory to use. It is larger than
#: malloc's threshold for mmap, so that releasing it returns it to the system.
_RESERVE_BYTES = 2 << 20
#: What a report of training has; null where it is not known.
_TRAINING = (
    "samples", "short", "counted_by", "dataset_samples", "batches", "drop_last", "total_steps",
    "warmup_steps", "accumulation",
)  # fmt: skip
_PHASE, _SEEN, _REPORTED = "_oomguard_phase", "_oomguard_seen", "_oomguard_reported"


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keep our faults from the job: one is reported, then the monitor is disabled."""

    @functools.wraps(method)
    def safe(self: Reporter, *args: Any) -> Any:
        if self.disabled:
            return None
        try:
            return method(self, *args)
        except MemoryError:  # the job's, not our fault
            return None
        except Exception as error:  # noqa: BLE001 - see above
            self.disable(error)
            return None

    return safe


class Reporter:
    """Keeps the state of one process, decides what to report, and sends it.

    `quiet` processes are children that do not train, such as DataLoader workers: they report only
    failures until they finish an optimizer step.
    """

    def __init__(self, torch: Any, channel: Channel, *, quiet: bool) -> None:
        self.disabled = False
        self.state = MonitorState()
        self.quiet = quiet
        self.uninstall: Callable[[], None] = lambda: None
        self.before_line: Callable[[], None] = lambda: None
        self.window: Callable[[], dict[str, object] | None] = lambda: None
        self.stepped: Callable[[dict[str, object] | None], None] = lambda _: None
        self.stop_counting: Callable[[], None] = lambda: None
        self.restarted: Callable[[], None] = lambda: None
        self.finished_at = 0.0  # the latest optimizer step, in seconds of time.monotonic()
        self._torch, self._channel = torch, channel
        self._entered: set[str] = set()
        self._steps = 0
        self._last_step = self._last_phase = time.monotonic()
        self._reserve: bytearray | None = bytearray(_RESERVE_BYTES)
        self._peak_data_bytes = 0
        self._passes = FirstPasses(torch)
        self._splits: list[list[int]] = []
        self._last_split = 0.0
        self._widest: Account | None = None
        self._timing: dict[str, Any] = {}

    @_guarded
    def hello(self) -> None:
        """Report that torch was imported."""
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
        """Enter a hooked function; return what `leave` and `failed` need."""
        before = self.state.enter(phase)
        if phase == phases.BACKWARD:
            data_bytes = self._sample()
            if before not in {None, phase}:
                self._passes.begin(data_bytes)
        if before not in {None, phase}:
            self._note_phase(phase)
        return before

    @_guarded
    def leave(self, phase: str, before: str | None) -> None:
        """Leave a hooked function that returned."""
        self.state.leave(phase, before)
        if phase == phases.BACKWARD:
            data_bytes = self._sample()
            if before not in {None, phase}:
                self._passes.end(data_bytes, self.state.shapes)
        if phase == phases.OPTIMIZER and self.state.finish_step():
            self.finished_at = time.monotonic()
            self._note_step()

    @_guarded
    def failed(self, phase: str, before: str | None, error: BaseException) -> None:
        """Leave a hooked function that raised; the innermost hook sets the exception's phase."""
        now = phase if before is None else self.state.phase
        self.state.leave(phase, before)
        if not isinstance(error, StopIteration):
            self.passed(error, now)

    @_guarded
    def passed(self, error: BaseException, phase: str) -> None:
        """Report an OOM that the job may still catch."""
        if getattr(error, _PHASE, None) is None:
            _mark(error, _PHASE, phase)
        found = oom.find(error)
        if found is not None and not hasattr(found.error, _SEEN):
            _mark(found.error, _SEEN, True)
            self._oom(found, phase, uncaught=False)

    @_guarded
    def ended(self, error: BaseException) -> None:
        """Report an exception that ended the process or a thread of it."""
        if hasattr(error, _REPORTED):
            return
        _mark(error, _REPORTED, True)
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
        """Note a batch that was fetched."""
        before = self.state.phase
        self.state.fetched(batch)
        if self.state.phase != before:
            self._note_phase(self.state.phase)

    @_guarded
    def prepared(self) -> None:
        """Report the end of a pass over the data."""
        if not self.quiet and self.state.phase in phases.BEFORE_TRAINING:
            self._send("phase", phase=self.state.phase, memory=usage.measure(self._torch))

    @_guarded
    def trains_on(self, batch: Any) -> None:
        """Note the batch of a training step."""
        self.state.trains_on(batch)

    @_guarded
    def training(self, known: dict[str, object]) -> None:
        """Report what is known of the training once its first batch is."""
        if not self.quiet:
            self._send("training", None, **{**dict.fromkeys(_TRAINING), **known})

    @_guarded
    def first_loss(self, found: dict[str, object]) -> None:
        """Report the loss of the first optimizer step."""
        self._send("loss", None, **found)

    @_guarded
    def probed(self, tokens: int, longest: int) -> None:
        """Report the end of a probe, with its lengthened length and longest row (0 for none)."""
        taken = usage.measure(self._torch)
        self._send("probe", memory=taken, tokens=tokens or None, longest=longest or None)

    @_guarded
    def trained(self, completed: bool) -> None:
        """Report that the training loop returned (`completed`) or raised."""
        self._send("trained", completed=completed)

    def split(self, account: Account, timing: dict[str, Any]) -> None:
        """Report an optimizer step that ran in parts; of several in a row only some."""
        self._timing = timing
        step = self.state.step + 1
        if account.failed:
            self._send_splits()  # of the steps before it
        widest = self._widest
        if widest is None or (account.width, account.rows) >= (widest.width, widest.rows):
            self._widest = account
        if self._splits and self._splits[-1][1] == step - 1:
            self._splits[-1][1] = step
        else:
            self._splits.append([step, step])
        is_due = time.monotonic() - self._last_split >= SPLIT_INTERVAL_S
        if account.failed or is_due or len(self._splits) >= SPLIT_SPANS:
            self._send_splits()

    @_guarded
    def split_evaluation(self, account: Account) -> None:
        """Report a prediction step that ran in parts; only those that answered an OOM."""
        if account.failed:
            step = self.state.step + 1
            self._send_account(account, [[step, step]], evaluation=True)

    def _send_splits(self) -> None:
        account, spans = self._widest, self._splits
        self._splits, self._widest, self._last_split = [], None, time.monotonic()
        if account is not None and spans:
            self._send_account(account, spans, evaluation=False)

    def _send_account(self, account: Account, spans: list[list[int]], *, evaluation: bool) -> None:
        self._send(
            "split",
            steps=sum(last - first + 1 for first, last in spans),
            spans=spans,
            failed=account.failed,
            refused=account.refused,
            parts=account.parts,
            rows=account.rows,
            width=account.width,
            tokens=account.tokens,
            seconds=account.seconds,
            evaluation=evaluation,
            timing=self._timing or None,
        )

    @_guarded
    def no_split(self, reason: str, width: int | None) -> None:
        """Report why an OOM is not answered by smaller parts; `width` is that of a single row."""
        self._send("no_split", reason=lines.cut(reason), width=width)

    @_guarded
    def begin_training(self) -> None:
        """Note that gradients were cleared."""
        before = self.state.phase
        self.state.begin_training()
        if self.state.phase != before:
            self._note_phase(self.state.phase)

    @_guarded
    def forked(self) -> None:
        """Reset everything in a forked child."""
        self._channel.forked()
        self.state.forked()
        self._entered.clear()
        self._passes = FirstPasses(self._torch)
        self.quiet = True

    @_guarded
    def bye(self) -> None:
        """Report that the interpreter is shutting down normally."""
        self._send_splits()
        if not self.quiet:
            self._send("bye", memory=usage.measure(self._torch))
        self._channel.close()

    def disable(self, error: BaseException) -> None:
        """Report a fault of the monitor, and remove all hooks."""
        if self.disabled:
            return
        self.disabled = True
        try:
            self.uninstall()
            where = lines.shown(lines.frames_of(error))[-1:]
            self._send("fault", message=lines.cut(f"{lines.type_name(error)}: {error} {where}"))
        except Exception:  # noqa: BLE001, S110 - nothing is left to report to
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
        now, window = time.monotonic(), self.window()
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
            window=window,
            passes=self._passes.take(),
        )
        if self._steps == FIRST_STEPS:
            self._passes.stop()
        self.stepped(window)

    def _sample(self) -> int:
        """Return private data around a backward pass: close to the peak of a step."""
        data_bytes = usage.data_bytes()
        self._peak_data_bytes = max(self._peak_data_bytes, data_bytes)
        return data_bytes

    def _oom(self, found: oom.FoundOom, phase: str | None, *, uncaught: bool) -> None:
        """Report an OOM from the reserve, without frames and memory if even that is too little."""
        self._reserve = None
        try:
            try:
                frames = lines.frames_of(found.error)
                self._send_oom(found, phase or self._phase_of(frames), uncaught, frames)
            except MemoryError:
                self._send_oom(found, phase, uncaught, None)
        finally:
            self._reserve = _reserve()

    def _send_oom(
        self,
        found: oom.FoundOom,
        phase: str | None,
        uncaught: bool,
        frames: list[tuple[str, int, str]] | None,
    ) -> None:
        self._send(
            "oom",
            phase=phase,
            phase_known=phase is not None or self.state.phase not in phases.DEFAULTS,
            exception=lines.type_name(found.error),
            message=lines.cut(found.text),
            uncaught=uncaught,
            frames=[] if frames is None else lines.shown(frames),
            memory={} if frames is None else usage.measure(self._torch),
            shapes={} if frames is None else _listed(self.state.shapes),
            device=found.device,
            requested_bytes=oom.requested_bytes(found.text),
            capacity_bytes=oom.capacity_bytes(found.text),
            passes=[] if frames is None else self._passes.take(),
        )

    def _phase_of(self, frames: list[tuple[str, int, str]]) -> str | None:
        """Return the phase that a traceback shows; None if only the default is left."""
        now = self.state.phase
        pairs = ((file, function) for file, _, function in frames)
        return phases.of_frames(pairs, None if now in phases.DEFAULTS else now)

    def _send(self, type_: str, phase: str | None = None, **fields: object) -> None:
        self.before_line()
        line = lines.heading(type_, self._torch, os.environ)
        line.update(phase=phase or self.state.phase, step=self.state.step, **fields)
        if not self._channel.send(lines.encode(line)) and not self.disabled:
            self.disabled = True
            self.uninstall()


def _mark(error: BaseException, name: str, value: object) -> None:
    """Note something on the exception itself, so that we keep no reference to it."""
    with contextlib.suppress(Exception):  # one with slots is reported twice
        setattr(error, name, value)


def _listed(shapes: dict[str, tuple[int, ...]]) -> dict[str, list[int]]:
    return {name: [int(size) for size in shape] for name, shape in shapes.items()}


def _reserve() -> bytearray | None:
    try:
        return bytearray(_RESERVE_BYTES)
    except MemoryError:
        return None
