"""Combines what all witnesses found into one verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import Enum

from oomguard.evidence.case import Case, lines_after, reading_of, sort_findings
from oomguard.evidence.log import LogScanner
from oomguard.evidence.message import ANNOUNCED, FRAMES, LAST_OUTPUT
from oomguard.evidence.signatures import Reading
from oomguard.evidence.verdict import Confidence, Finding, Kind, Phase, Verdict, Witness

EVIDENCE_AT_MOST = 20
TEXT_CHARS = 400

_SIGKILL_CODES = frozenset({-9, 137, 247})  # 247 is sys.exit(-9), as DeepSpeed's launcher ends
_INTERRUPT_CODES = frozenset({-2, 130})
#: Signals of a process's own fault: the exit codes of subprocess and of a shell.
CRASH_CODES = {
    code: name
    for name, number in (
        ("SIGILL", 4),
        ("SIGABRT", 6),
        ("SIGBUS", 7),
        ("SIGFPE", 8),
        ("SIGSEGV", 11),
    )
    for code in (-number, 128 + number)
}
#: A shell's exit codes for a command that cannot be executed, and for one that it does not find.
_NOT_STARTED = frozenset({126, 127})
BARE_KILL = "killed by SIGKILL; nothing shows that memory was the reason"
_NOTHING_SHOWN = "nothing shows a failure or a completed run"
_BARE_CANCEL = "slurm-cancelled"  # also what srun does to the others after one task failed
#: Lines within which two messages are of one failure, for what the first leaves out.
_SAME_FAILURE_LINES = 400
_WORKERS = frozenset({"dataloader-killed", "map-child-died", "pool-child-died"})
_BEFORE_TRAINING = frozenset({Phase.UNKNOWN, Phase.LAUNCH, Phase.LOAD, Phase.PREPROCESS})
_ORDER = {witness: place for place, witness in enumerate(Witness)}


class StoppedBy(str, Enum):
    """Who ended the job, where oomguard knows."""

    USER = "user"  # a signal that oomguard got and passed on
    OOMGUARD = "oomguard"  # stopped for what was found; the exit code says nothing


def judge(
    findings: Sequence[Finding],
    returncode: int | None,
    *,
    stopped_by: StoppedBy | None = None,
    kernel_watched: bool = False,
) -> Verdict:
    """Return what ended a job.

    Args:
        findings: of all witnesses, in the order in which they were seen.
        returncode: as `subprocess` gives it or as a shell does; None where it is not known.
        stopped_by: who stopped the job, if oomguard knows.
        kernel_watched: whether the kernel's OOM counters were readable all the time, so that
            no KERNEL finding means that the kernel killed nothing for its memory.
    """
    case = sort_findings(findings, returncode)
    if returncode == 0 and stopped_by is None and _has_survived(case):
        case = replace(case, shortages=(), caught=(*case.caught, *case.shortages))
    if stopped_by is StoppedBy.USER:
        first = next(iter(case.shortages), None)
        return _verdict(Kind.INTERRUPTED, "stopped by the user", Confidence.HIGH, case, first)
    return (
        _shortage(case)
        or _failure(case, returncode, kernel_watched=kernel_watched)
        or _success(case, returncode)
        or _unexplained(case, returncode, stopped_by)
    )


def judge_log(stream: Iterable[bytes], exit_code: int | None = None) -> Verdict:
    """Return what ended a job by its log alone; `stream` yields chunks of any size."""
    scanner = LogScanner()
    findings: list[Finding] = []
    for chunk in stream:
        findings += scanner.feed(chunk)
    return judge([*findings, *scanner.close()], exit_code)


def _has_survived(case: Case) -> bool:
    """Return whether a job that exited with 0 has trained in spite of the OOMs that were seen.

    Something may hide behind the 0 what a process or the kernel reports: there the training must be
    known to be completed, or to go on after the end of a helper process. Text alone does not
    outweigh the exit code, unless a launcher prints that a process below it failed.
    """
    if case.completed:
        return True
    sure = [f for f in case.shortages if f.witness is not Witness.LOG]
    if sure:
        return all(f.rank in case.trained_ranks or (f.helper and case.went_on) for f in sure)
    return not any(reading_of(f) is Reading.WRAPPER for f in case.echoes)


def _shortage(case: Case) -> Verdict | None:
    """The job ran out of memory: the earliest OOM of the best witness."""
    inside_error = any(f.witness is Witness.INSIDE and not f.helper for f in case.errors)
    shortages = [f for f in case.shortages if not (inside_error and f.helper)]
    if not shortages:
        return None
    best = min(_ORDER[f.witness] for f in shortages)
    if inside_error and best > _ORDER[Witness.KERNEL]:
        return None
    root = next(f for f in shortages if _ORDER[f.witness] == best)
    witnesses = {f.witness for f in shortages if f.kind is root.kind}
    sure = root.witness in (Witness.INSIDE, Witness.KERNEL) or len(witnesses) > 1
    return _verdict(root.kind, root.text, Confidence.HIGH if sure else root.confidence, case, root)


def _failure(case: Case, code: int | None, *, kernel_watched: bool) -> Verdict | None:
    """Something else failed, or a SIGKILL that memory may explain."""
    own, killed = _own_error(case), next(iter(case.kills), None)
    reported = own is not None and own.witness is Witness.INSIDE
    trained = case.completed or bool(case.trained_ranks)
    if (code == 0 and trained) or (code is None and case.completed and not own):
        return None
    if code in _INTERRUPT_CODES and (own is None or own.signature == "python-interrupt"):
        return _verdict(Kind.INTERRUPTED, "ended by Ctrl-C", Confidence.MEDIUM, case, _exit(code))
    ended = _interruption(case)
    if ended and code != 0 and not reported:
        return _verdict(Kind.INTERRUPTED, ended.text, Confidence.MEDIUM, case, ended)
    if own and (code != 0 or reported):
        return _verdict(Kind.NOT_OOM, own.text, Confidence.MEDIUM, case, own)
    # Launchers end with 0 after a killed child; a loader's worker may be killed at the end.
    if killed and (code != 0 or killed.signature not in _WORKERS):
        return _killed(case, killed, kernel_watched=kernel_watched)
    return _by_exit(case, code)


def _interruption(case: Case) -> Finding | None:
    """Return how a scheduler ended the job, unless the job had failed before by itself."""
    first = next(iter(case.interruptions), None)
    if first is None or any((f.line or 0) < (first.line or 0) for f in case.errors):
        return None
    return next((f for f in case.interruptions if f.signature != _BARE_CANCEL), first)


def _by_exit(case: Case, code: int | None) -> Verdict | None:
    """Nothing but the exit code, and what launchers and other processes say."""
    if code in _SIGKILL_CODES:
        return _verdict(Kind.UNKNOWN, BARE_KILL, Confidence.LOW, case, _exit(code))
    if code and case.survived:
        first = case.survived[0]  # it ran on for a while, and nothing else explains its end
        return _verdict(first.kind, first.text, Confidence.MEDIUM, case, first)
    if code in CRASH_CODES:
        text = f"exited with code {code} ({CRASH_CODES[code]})"
        return _verdict(Kind.NOT_OOM, text, Confidence.LOW, case, _exit(code))
    if case.echoes and code != 0:
        last = case.echoes[-1]
        told = [f for f in case.echoes if reading_of(f) is not Reading.WRAPPER]
        kind = Kind.NOT_OOM if told else Kind.UNKNOWN  # a launcher knows only that a process failed
        return _verdict(kind, last.text, Confidence.LOW, case, last)
    return None


def _killed(case: Case, killed: Finding, *, kernel_watched: bool) -> Verdict:
    """Weigh a SIGKILL: loading is where host memory runs out, and the kernel would know."""
    worker = killed.signature in _WORKERS
    before_training = not case.trained and killed.phase in _BEFORE_TRAINING
    if not kernel_watched and (worker or before_training):
        # The launcher says it several times; the phase is known where it says so first.
        told = next((f for f in case.kills if f.phase is not Phase.UNKNOWN), killed)
        return _verdict(Kind.HOST_OOM, killed.text, Confidence.LOW, case, told)
    if worker:
        return _verdict(Kind.NOT_OOM, killed.text, Confidence.LOW, case, killed)
    return _verdict(Kind.UNKNOWN, BARE_KILL, Confidence.LOW, case, killed)


def _success(case: Case, code: int | None) -> Verdict | None:
    """The exit code says so, or the log shows an end or steps that go on."""
    caught = next(iter(case.caught), None)
    if code == 0:
        sure = Confidence.HIGH if case.completed or case.trained_ranks else Confidence.MEDIUM
        return _verdict(Kind.OK, "exit code 0", sure, case, caught or _exit(0))
    if code is not None:
        return None
    shown = next((f for f in reversed(case.findings) if f.kind is Kind.OK), None)
    if shown is None:
        return None
    return _verdict(Kind.OK, shown.text, Confidence.LOW, case, caught or shown)


def _unexplained(case: Case, code: int | None, stopped_by: StoppedBy | None) -> Verdict:
    """Nothing shows what ended the job; an error that often hides an OOM is at least named."""
    masked = next(iter(case.masked), None)
    if masked:
        return _verdict(Kind.NOT_OOM, masked.text, Confidence.LOW, case, masked)
    if code is None:
        return _verdict(Kind.UNKNOWN, _NOTHING_SHOWN, Confidence.LOW, case, None)
    if stopped_by is StoppedBy.OOMGUARD:
        return _verdict(Kind.NOT_OOM, "stopped by oomguard", Confidence.LOW, case, None)
    first = next(iter(case.caught), None)
    if first:
        return _verdict(Kind.UNKNOWN, first.text, Confidence.LOW, case, first)
    last = next((f for f in case.findings if f.signature == LAST_OUTPUT), None)
    reason = f"last output: {last.text}" if last else "no error recognised in log.txt"
    text = f"exited with code {code}; {reason}"
    kind = Kind.NOT_OOM if code in _NOT_STARTED else Kind.UNKNOWN
    return _verdict(kind, text, Confidence.LOW, case, last or _exit(code))


def _own_error(case: Case) -> Finding | None:
    """The job's own last error; what the process itself reported first."""
    inside = [f for f in case.errors if f.witness is Witness.INSIDE]
    if inside:
        return next((f for f in inside if not f.helper), inside[0])
    return case.errors[-1] if case.errors else None


def _exit(code: int) -> Finding:
    return Finding(
        witness=Witness.EXIT, kind=Kind.OK if code == 0 else Kind.NOT_OOM,
        text=f"exit code {code}", confidence=Confidence.LOW,
    )  # fmt: skip


_NO_EVIDENCE = (FRAMES, LAST_OUTPUT, ANNOUNCED)


def _verdict(
    kind: Kind, text: str, confidence: Confidence, case: Case, root: Finding | None
) -> Verdict:
    others = (f for f in case.findings if f is not root and f.signature not in _NO_EVIDENCE)
    evidence = [*([root] if root else []), *others][:EVIDENCE_AT_MOST]
    root = root or Finding(witness=Witness.EXIT, kind=kind, text=text)
    phase, sized = _phase(root, case), _with_sizes(root, case)
    return Verdict(
        kind=kind, cause=sized.cause, phase=phase, rank=sized.rank, step=sized.step,
        requested_bytes=sized.requested_bytes, capacity_bytes=sized.capacity_bytes,
        root=text[:TEXT_CHARS], confidence=confidence,
        evidence=tuple(replace(f, text=f.text[:TEXT_CHARS]) for f in evidence),
        phase_known=root.phase_known or phase is not root.phase,
    )  # fmt: skip


def _with_sizes(root: Finding, case: Case) -> Finding:
    """Return the root with the sizes that the same failure states further below.

    A notebook heads a traceback with the bare type; a logger repeats what was raised.
    """
    if not root.kind.is_memory or root.requested_bytes or root.capacity_bytes:
        return root
    for other in case.findings:
        same = other.kind is root.kind and other.rank in (None, root.rank)
        near = 0 < lines_after(root, other) <= _SAME_FAILURE_LINES
        if same and near and (other.requested_bytes or other.capacity_bytes):
            return replace(
                root, requested_bytes=other.requested_bytes, capacity_bytes=other.capacity_bytes,
                cause=other.cause,
            )  # fmt: skip
    return root


def _phase(root: Finding, case: Case) -> Phase:
    """The root's own phase, else that of the traceback below it, else another finding's."""
    if root.phase is not Phase.UNKNOWN:
        return root.phase
    told = [f for f in case.findings if f.phase is not Phase.UNKNOWN and not f.handled]
    below = [f for f in told if f.signature == FRAMES and lines_after(root, f) > 0]
    return next((f.phase for f in (*below, *told)), Phase.UNKNOWN)
