"""Starts the command of one attempt, with everything that listens to it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from oomguard import monitor
from oomguard.errors import FrameworkError, OomguardError, RunFolderError, UsageError, Where
from oomguard.job.command import Command, File
from oomguard.machine.cgroups import Cgroup, name_for, own_cgroup
from oomguard.machine.gpus import FreeReport, Gpu, gpus, wait_until_free
from oomguard.monitor import add_monitor
from oomguard.process.child import Child, LaunchRefusal, Spec
from oomguard.process.limits import Caps
from oomguard.process.members import MARK, Members, become_subreaper
from oomguard.process.messages import Emit
from oomguard.process.report_server import ReportServer
from oomguard.process.running import KernelWatch, Running
from oomguard.process.tee import Tee

__all__ = ["EXIT_FILE", "Running", "start"]

EXIT_FILE = "exit-code.txt"


def start(
    command: Command, *, log: Path, caps: Caps, inside: bool, mark: str, emit: Emit
) -> Running:
    """Write the command's files and start it; `emit` is called from several threads.

    The job runs in a session of its own, without input. `mark` is unique to the attempt. With
    `inside` the reporter is put on the Python path, with a folder beside the log to fall back to.

    Raises:
        UsageError: if a cap cannot be held here, or the working folder is not there.
        FrameworkError: if there is no such command, or it cannot be executed.
        RunFolderError: if the log or a file cannot be written.
    """
    _check(caps, inside=inside)
    become_subreaper()
    write_files(command.files)
    with ExitStack() as undo, ExitStack() as unless_begun:
        own = own_cgroup()
        group = _attempt_cgroup(own, caps, mark)
        if group:
            undo.callback(group.remove)
        kernel = KernelWatch(group or own, emit)
        undo.callback(kernel.close)
        env = environment(command.env, mark=mark, capped=caps.host_memory_bytes is not None)
        reports = _listen(log, emit, undo) if inside else None
        if reports is not None:
            env = add_monitor(
                env,
                socket=reports.path,
                buffer=reports.buffer,
                gpu_memory_bytes=caps.gpu_memory_bytes,
            )
        log_fd = open_log(log)
        unless_begun.callback(os.close, log_fd)
        running = Running(
            emit=emit,
            kernel=kernel,
            reports=reports,
            cgroup=os.fspath(group.folder) if group else None,
            exit_file=log.with_name(EXIT_FILE),
        )
        child = _spawn(command, env, group, caps, running)
        unless_begun.callback(child.abandon)
        members = Members(leader=child.row, mark=mark, cgroup=group)
        tee = Tee(pipe_fd=child.output_fd, log_fd=log_fd, emit=emit)
        unless_begun.pop_all()
        running.begin(child=child, tee=tee, members=members, resources=undo.pop_all())
    return running


def _listen(log: Path, emit: Emit, undo: ExitStack) -> ReportServer:
    """Open the socket of the reporters inside, and the folder that they fall back to."""
    buffer = log.parent / "buffer"
    make_folder(buffer)
    reports = ReportServer(emit, buffer=buffer)
    undo.callback(reports.close)
    return reports


def _check(caps: Caps, *, inside: bool) -> None:
    if caps.gpu_memory_bytes is not None and not inside:
        raise UsageError(
            "GPU memory can only be capped from inside the job",
            next_step="Leave out either --no-monitor or --gpu-memory.",
        )


def _attempt_cgroup(own: Cgroup | None, caps: Caps, mark: str) -> Cgroup | None:
    """Make the attempt's own group, capped if asked for; without a cap it may be missing."""
    size_bytes = caps.cgroup_bytes
    try:
        if own is None:
            raise FileNotFoundError(errno.ENOENT, "there is no memory cgroup")
        group = own.make(name_for(mark))
    except OSError as error:
        if size_bytes is None:
            return None
        raise _no_cgroup(error) from error
    try:
        if size_bytes is not None:
            group.cap(size_bytes)
    except OSError as error:
        group.remove()
        raise _no_cgroup(error) from error
    return group


def _no_cgroup(error: OSError) -> UsageError:
    return UsageError(
        f"host memory cannot be capped by a cgroup here: {error.strerror or error}",
        next_step="Cap it by rlimit instead: it holds for each process alone and needs no rights.",
    )


def _spawn(
    command: Command, env: dict[str, str], group: Cgroup | None, caps: Caps, running: Running
) -> Child:
    spec = Spec(
        argv=command.argv,
        cwd=command.cwd,
        env=env,
        cgroup=os.fspath(group.folder) if group else None,
        data_bytes=caps.data_bytes,
    )
    try:
        child = Child(spec, running.exited)
    except (OSError, ValueError) as error:
        raise _cannot_begin(command, error) from error
    if child.refusal is not None:
        child.abandon()
        raise _refused(command, env, child.refusal)
    return child


def _cannot_begin(command: Command, error: OSError | ValueError) -> OomguardError:
    if not Path(command.cwd).is_dir():
        return UsageError(
            "the working folder is not there",
            where=Where(file=command.cwd),
            next_step="Make it, or start from another one.",
        )
    reason = getattr(error, "strerror", None) or str(error)
    return FrameworkError(
        f"cannot start {command.argv[0]!r}: {reason}",
        next_step="Check its arguments and its environment.",
    )


def _refused(command: Command, env: dict[str, str], refusal: LaunchRefusal) -> OomguardError:
    if refusal.step == "cgroup":
        return UsageError(
            f"the job cannot be put into a memory cgroup: {refusal.text}",
            next_step="Cap host memory by rlimit instead.",
        )
    if refusal.step != "exec":
        return OomguardError(f"the job could not be prepared: {refusal.text}")
    program = command.argv[0]
    return FrameworkError(
        f"cannot start {program!r}: {refusal.text}",
        next_step=_remedy(program, command.cwd, env, refusal.errno),
    )


def _remedy(program: str, cwd: str, env: dict[str, str], number: int | None) -> str:
    found = shutil.which(Path(cwd) / program if "/" in program else program, path=env.get("PATH"))
    if number == errno.ENOENT and found:
        return f"{found} is there; the interpreter that its first line names is not."
    if number == errno.ENOENT:
        return "Install it, activate its environment, or give its full path."
    if number == errno.EACCES:
        return "Make the file executable (chmod +x)."
    if number == errno.ENOEXEC:
        return "It is no program: its first line names no interpreter (#!)."
    return "Try the command by hand."


# glibc keeps freed heap; from this size on it gives freed tensors back, as a device would.
_MMAP_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "262144"}


def write_files(files: Iterable[File]) -> None:
    """Write each file beside its place and move it there, in order.

    Raises:
        RunFolderError: if one cannot be written.
    """
    for file in files:
        target = Path(file.path)
        beside = target.with_name(f".oomguard-{os.getpid()}.tmp")
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(
                _private(beside), "w", encoding="utf-8", errors="surrogateescape", newline=""
            ) as out:
                out.write(file.text)
                out.flush()
                os.fsync(out.fileno())
            beside.replace(target)
        except OSError as error:
            with suppress(OSError):
                beside.unlink()
            raise _cannot_write(target, error) from error


def _private(path: Path) -> int:
    """Open a file that only its owner can read: configs may hold tokens."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def make_folder(folder: Path) -> None:
    """Make a folder with its parents, if it is not there yet.

    Raises:
        RunFolderError: if it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def open_log(log: Path) -> int:
    """Open the log to append to, unbuffered; return its descriptor.

    Raises:
        RunFolderError: if it cannot be opened.
    """
    make_folder(log.parent)
    try:
        return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise _cannot_write(log, error) from error


def environment(asked: Mapping[str, str], *, mark: str, capped: bool) -> dict[str, str]:
    """Return oomguard's environment with what the command asks for, and the mark."""
    env = {name: value for name, value in os.environ.items() if name not in monitor.VARIABLES}
    if capped:
        env = _MMAP_THRESHOLD | env
    return {"PYTHONUNBUFFERED": "1"} | env | dict(asked) | {MARK: mark}


def _cannot_write(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot be written: {error.strerror or error}",
        where=Where(file=os.fspath(path)),
        next_step="Make room or give the rights, then go on with `oomguard resume`.",
    )


class LocalEngine:
    """Starts attempts as process groups, and remembers how free each GPU was before the first."""

    def __init__(self, *, caps: Caps, inside: bool) -> None:
        self._caps, self._inside = caps, inside
        self._before: tuple[Gpu, ...] = gpus()

    def start(self, command: Command, *, log: Path, mark: str, emit: Emit) -> Running:
        """Start an attempt; `emit` is called from other threads with what happens to it."""
        return start(command, log=log, caps=self._caps, inside=self._inside, mark=mark, emit=emit)

    def wait_until_free(self) -> FreeReport:
        """Wait until each GPU is as free as it was before the first attempt."""
        return wait_until_free(self._before)
