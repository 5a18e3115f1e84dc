"""Start an attempt: its files, log, environment, cgroup and process, and what watches it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from oomguard import monitor, present
from oomguard.errors import FrameworkError, OomguardError, RunFolderError, UsageError, Where
from oomguard.job.command import Command, File
from oomguard.machine.atomic_write import write_text
from oomguard.machine.cgroups import Cgroup, name_for, own_cgroup
from oomguard.machine.gpus import FreeReport, gpus, wait_until_free
from oomguard.process.child import Child, LaunchRefusal, Spec
from oomguard.process.limits import Caps
from oomguard.process.members import MARK, Members, become_subreaper
from oomguard.process.messages import Emit
from oomguard.process.report_server import ReportServer
from oomguard.process.running import KernelWatch, Running
from oomguard.process.tee import Tee
from oomguard.redact import Known, found_in

EXIT_FILE = "exit-code.txt"
# Above this size glibc returns freed memory to the system, as a GPU's allocator would.
_MMAP_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": "262144"}


class LocalEngine:
    """Starts attempts on this machine, and remembers how free each GPU was before the first."""

    def __init__(self, *, caps: Caps, monitored: bool, in_place: bool = False) -> None:
        self._caps, self._monitored, self._in_place = caps, monitored, in_place
        self._before = gpus()

    def start(self, command: Command, *, log: Path, mark: str, emit: Emit) -> Running:
        """Start an attempt, as the function `start` does."""
        return start(
            command,
            log=log,
            caps=self._caps,
            monitored=self._monitored,
            in_place=self._in_place,
            mark=mark,
            emit=emit,
        )

    def wait_until_free(self) -> FreeReport:
        """Wait until each GPU is as free as it was before the first attempt."""
        return wait_until_free(self._before)


def start(
    command: Command,
    *,
    log: Path,
    caps: Caps,
    monitored: bool,
    mark: str,
    emit: Emit,
    in_place: bool = False,
) -> Running:
    """Write the command's files and start it; `emit` is called from several threads.

    The job runs in its own session with no input. `mark` is unique to the attempt. With `monitored`
    its Python processes load the monitor, and with `in_place` it may run steps in smaller parts.

    Raises:
        UsageError: if a cap cannot be applied here, or the working directory does not exist.
        FrameworkError: if the command does not exist or cannot be executed.
        RunFolderError: if the log or a file cannot be written.
    """
    if caps.gpu_memory_bytes is not None and not monitored:
        raise UsageError(
            "GPU memory can only be capped by the monitor",
            next_step="Remove either --no-monitor or --gpu-memory.",
        )
    become_subreaper()
    write_files(command.files)
    env = environment(command.env, mark=mark, capped=caps.host_memory_bytes is not None)
    known = command.secrets() | found_in(env=env)
    with ExitStack() as undo, ExitStack() as unless_started:
        group, kernel = _watch_kernel(caps, mark, emit, undo)
        reports = None
        if monitored:
            reports, env = _add_monitor(env, log, caps, emit, known)
            env = env | (monitor.in_place() if in_place else {})
            undo.callback(reports.close)
        log_fd = _open_log(log)
        unless_started.callback(os.close, log_fd)
        cgroup, exit_file = os.fspath(group.folder) if group else None, log.with_name(EXIT_FILE)
        running = Running(
            emit=emit, kernel=kernel, reports=reports, cgroup=cgroup, exit_file=exit_file
        )
        child = _spawn(command, env, running, data_bytes=caps.data_bytes)
        unless_started.callback(child.abandon)
        members = Members(leader=child.row, mark=mark, cgroup=group)
        tee = Tee(pipe_fd=child.output_fd, log_fd=log_fd, emit=emit, known=known)
        unless_started.pop_all()
        running.begin(child=child, tee=tee, members=members, resources=undo.pop_all())
    return running


def write_files(files: Iterable[File]) -> None:
    """Write each file atomically, in order; only its owner may read it.

    Raises:
        RunFolderError: if one cannot be written.
    """
    for file in files:
        target = Path(file.path)
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_text(target, file.text)
        except OSError as error:
            raise _cannot_write(target, error) from error


def environment(requested: Mapping[str, str], *, mark: str, capped: bool) -> dict[str, str]:
    """Return oomguard's environment updated by the command's, with the mark."""
    env = {name: value for name, value in os.environ.items() if name not in monitor.VARIABLES}
    if capped:
        env = _MMAP_THRESHOLD | env
    return {"PYTHONUNBUFFERED": "1"} | env | dict(requested) | {MARK: mark}


def _watch_kernel(
    caps: Caps, mark: str, emit: Emit, undo: ExitStack
) -> tuple[Cgroup | None, KernelWatch]:
    """Create the attempt's cgroup, if possible, and the watch on its OOM kills."""
    own = own_cgroup()
    group = _attempt_cgroup(own, caps, mark)
    if group:
        undo.callback(group.remove)
    kernel = KernelWatch(group or own, emit)
    undo.callback(kernel.close)
    return group, kernel


def _add_monitor(
    env: dict[str, str], log: Path, caps: Caps, emit: Emit, known: Known
) -> tuple[ReportServer, dict[str, str]]:
    """Return the server for reports, and the environment in which the job sends them.

    `buffer` beside the log holds the reports that cannot be sent.
    """
    buffer = log.parent / "buffer"
    _make_folder(buffer)
    reports = ReportServer(emit, buffer=buffer, known=known)
    return reports, monitor.add_monitor(
        env, socket=reports.path, buffer=buffer, gpu_memory_bytes=caps.gpu_memory_bytes
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _open_log(log: Path) -> int:
    """Return the descriptor of the log, unbuffered and opened to append."""
    _make_folder(log.parent)
    try:
        return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise _cannot_write(log, error) from error


def _cannot_write(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"cannot be written: {error.strerror or error}",
        where=Where(file=os.fspath(path)),
        next_step="Free disk space or fix the permissions, then run `oomguard resume`.",
    )


def _attempt_cgroup(own: Cgroup | None, caps: Caps, mark: str) -> Cgroup | None:
    """Create the attempt's cgroup, capped if requested; it is optional without a cap."""
    size_bytes = caps.cgroup_bytes
    try:
        if own is None:
            raise FileNotFoundError(errno.ENOENT, "no memory cgroup found")
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
        next_step="Cap it by rlimit: that limits each process and needs no permissions.",
    )


def _spawn(
    command: Command, env: dict[str, str], running: Running, *, data_bytes: int | None
) -> Child:
    spec = Spec(
        argv=command.argv, cwd=command.cwd, env=env, cgroup=running.cgroup, data_bytes=data_bytes
    )
    try:
        child = Child(spec, running.exited)
    except (OSError, ValueError) as error:
        if not present.is_folder(Path(command.cwd)):
            raise UsageError(
                "the working directory does not exist",
                where=Where(file=command.cwd),
                next_step="Create it, or start from another directory.",
            ) from error
        reason = getattr(error, "strerror", None) or str(error)
        raise FrameworkError(
            f"cannot start {command.argv[0]!r}: {reason}",
            next_step="Check its arguments and its environment.",
        ) from error
    if child.refusal is not None:
        child.abandon()
        raise _refused(command, env, child.refusal)
    return child


def _refused(command: Command, env: dict[str, str], refusal: LaunchRefusal) -> OomguardError:
    if refusal.step == "cgroup":
        return UsageError(
            f"the job cannot join a memory cgroup: {refusal.text}",
            next_step="Cap host memory by rlimit instead.",
        )
    if refusal.step != "exec":
        return OomguardError(f"the job's process cannot be set up: {refusal.text}")
    program = command.argv[0]
    path = Path(command.cwd) / program if "/" in program else program
    found = shutil.which(path, path=env.get("PATH"))
    advice = {
        errno.ENOENT: "Install it, activate its environment, or use its full path.",
        errno.EACCES: "Make the file executable (chmod +x).",
        errno.ENOEXEC: "Add an interpreter to the first line of the script (#!).",
    }.get(refusal.errno or 0, "Run the command without oomguard.")
    if refusal.errno == errno.ENOENT and found:
        advice = f"{found} exists, but the interpreter in its first line does not."
    return FrameworkError(f"cannot start {program!r}: {refusal.text}", next_step=advice)
