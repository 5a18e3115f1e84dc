"""Who starts the ranks: `python`, `torchrun`, `accelerate launch`, `deepspeed`, and how many."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from oomguard.job.training_job import World


class Launcher(str, Enum):
    """A program that starts training processes."""

    PYTHON = "python"  # one process
    TORCHRUN = "torchrun"
    ACCELERATE = "accelerate"
    DEEPSPEED = "deepspeed"


_PYTHON = re.compile(r"python[\d.]*|pypy[\d.]*")
#: Options that take no value. A word after any other option is its value.
_BARE = {
    Launcher.PYTHON: None,
    Launcher.TORCHRUN: {"standalone", "no-python", "run-path", "no_python", "run_path"},
    Launcher.ACCELERATE: {
        *("multi_gpu", "cpu", "tpu", "use_deepspeed", "use_fsdp", "use_megatron_lm", "use_xpu"),
        *(
            "quiet",
            "q",
            "no_python",
            "debug",
            "same_network",
            "use_mps_device",
            "use_parallelism_config",
        ),
        *("dynamo_use_fullgraph", "dynamo_use_dynamic", "dynamo_use_regional_compilation"),
    },
    Launcher.DEEPSPEED: {
        *("no_python", "no_local_rank", "force_multi", "save_pid", "enable_each_rank_log"),
        *("bind_cores_to_rank", "no_ssh", "no_ssh_check", "elastic_training"),
    },
}
_PYTHON_WITH_VALUE = {"-X", "-W", "--check-hash-based-pycs"}
_TORCHRUN_MODULES = {"torch.distributed.run", "torch.distributed.launch"}
_NOTHING: Mapping[str, object] = MappingProxyType({})
_COUNTED = {"gpu", "auto"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherCommand:
    """A parsed command line: `head` (launcher, its options, the program), then `args`.

    `options` are the launcher's own; `program` is the script's path, or the module's name.
    """

    launcher: Launcher
    options: Mapping[str, str]
    program: str
    is_module: bool
    head: tuple[str, ...]
    args: tuple[str, ...]

    def world(self, gpus: int, config: Mapping[str, object] = _NOTHING) -> World:
        """Return how many ranks the launcher starts; `config` are the values of `config_file`."""
        if self.launcher is Launcher.TORCHRUN:
            nodes = self.options.get("nnodes", "1").split(":")[-1]
            return _world(self.options.get("nproc_per_node", "1"), nodes, gpus)
        if self.launcher is Launcher.DEEPSPEED:
            local = self.options.get("num_gpus", "auto")
            return _world(local, self.options.get("num_nodes", "1"), gpus)
        if self.launcher is Launcher.ACCELERATE:
            return self._accelerate_world(gpus, config)
        return World()

    @property
    def config_file(self) -> str | None:
        """Return the file that `accelerate launch` was given."""
        return self.options.get("config_file") if self.launcher is Launcher.ACCELERATE else None

    def _accelerate_world(self, gpus: int, config: Mapping[str, object]) -> World:
        one = str(config.get("distributed_type", "")).upper() == "NO"
        if one and "multi_gpu" not in self.options:
            return World()  # whatever num_processes says
        total = self.options.get("num_processes") or config.get("num_processes")
        nodes = count(self.options.get("num_machines") or config.get("num_machines"), 1)
        fallback = 1 if "cpu" in self.options else max(1, gpus)
        return World(nodes=nodes, per_node=max(1, count(total, fallback * nodes) // nodes))


def parse(argv: tuple[str, ...]) -> LauncherCommand | None:
    """Parse a command line; None if it does not start a Python program in a known way."""
    name = posixpath.basename(argv[0]) if argv else ""
    if _PYTHON.fullmatch(name):
        return _python(argv)
    if name == "torchrun":
        return _launched(Launcher.TORCHRUN, argv, 1)
    if name == "accelerate" and argv[1:2] == ("launch",):
        return _launched(Launcher.ACCELERATE, argv, 2)
    if name == "deepspeed":
        return _launched(Launcher.DEEPSPEED, argv, 1)
    if name.endswith(".py"):
        return _launch(Launcher.PYTHON, {}, argv, 0, is_module=False)
    return None


def _python(argv: tuple[str, ...]) -> LauncherCommand | None:
    at = 1
    while at < len(argv) and argv[at].startswith("-") and argv[at] not in ("-m", "-c", "-"):
        at += 2 if argv[at] in _PYTHON_WITH_VALUE else 1
    if argv[at : at + 1] == ("-m",) and at + 1 < len(argv):
        if argv[at + 1] in _TORCHRUN_MODULES:
            return _launched(Launcher.TORCHRUN, argv, at + 2)
        if argv[at + 1].startswith("accelerate.commands.launch"):
            return _launched(Launcher.ACCELERATE, argv, at + 2)
        return _launch(Launcher.PYTHON, {}, argv, at + 1, is_module=True)
    if at < len(argv) and not argv[at].startswith("-"):
        return _launch(Launcher.PYTHON, {}, argv, at, is_module=False)
    return None


def _launched(launcher: Launcher, argv: tuple[str, ...], at: int) -> LauncherCommand | None:
    options: dict[str, str] = {}
    bare, is_module = _BARE[launcher] or set(), False
    while at < len(argv) and argv[at].startswith("-"):
        name, equals, value = argv[at].lstrip("-").partition("=")
        if name in ("m", "module"):
            is_module, at = True, at + 1
        elif equals or name in bare:
            options[name.replace("-", "_")], at = value, at + 1
        else:
            options[name.replace("-", "_")], at = "".join(argv[at + 1 : at + 2]), at + 2
    return _launch(launcher, options, argv, at, is_module=is_module)


def _launch(
    launcher: Launcher,
    options: Mapping[str, str],
    argv: tuple[str, ...],
    at: int,
    *,
    is_module: bool,
) -> LauncherCommand | None:
    if at >= len(argv):
        return None
    return LauncherCommand(
        launcher=launcher,
        options=options,
        program=argv[at],
        is_module=is_module,
        head=argv[: at + 1],
        args=argv[at + 1 :],
    )


def _world(per_node: str, nodes: str, gpus: int) -> World:
    local = max(1, gpus) if per_node in _COUNTED else count(per_node, 1)
    return World(nodes=count(nodes, 1), per_node=local)


def count(value: object, default: int) -> int:
    """Read a number of processes; `default` if it is not one."""
    return int(str(value)) if str(value).isdecimal() and int(str(value)) > 0 else default
