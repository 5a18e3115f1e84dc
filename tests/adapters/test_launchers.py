from __future__ import annotations

import pytest

from oomguard.adapters.launchers import Launcher, parse
from oomguard.job.training_job import World


@pytest.mark.parametrize(
    ("line", "launcher", "program", "args"),
    [
        ("python train.py --a 1", Launcher.PYTHON, "train.py", "--a 1"),
        ("/opt/x/bin/python3.11 -u -X dev train.py a", Launcher.PYTHON, "train.py", "a"),
        ("python -m pkg.train --a", Launcher.PYTHON, "pkg.train", "--a"),
        ("./train.py --a", Launcher.PYTHON, "./train.py", "--a"),
        ("torchrun --standalone --nproc-per-node 2 t.py --a", Launcher.TORCHRUN, "t.py", "--a"),
        ("torchrun --nproc_per_node=2 -m pkg.t x", Launcher.TORCHRUN, "pkg.t", "x"),
        ("python -m torch.distributed.run --nnodes 1 t.py", Launcher.TORCHRUN, "t.py", ""),
        ("accelerate launch --multi_gpu --num_processes 2 t.py", Launcher.ACCELERATE, "t.py", ""),
        ("deepspeed --num_gpus 2 --no_python t.py --a", Launcher.DEEPSPEED, "t.py", "--a"),
    ],
)
def test_a_command_line_is_taken_apart(
    line: str, launcher: Launcher, program: str, args: str
) -> None:
    launch = parse(tuple(line.split()))
    assert launch is not None
    assert (launch.launcher, launch.program) == (launcher, program)
    assert launch.args == tuple(args.split())
    assert (*launch.head, *launch.args) == tuple(line.split())


@pytest.mark.parametrize(
    "line", ["", "bash train.sh", "python", "python -c pass", "torchrun --x", "accelerate config"]
)
def test_other_commands_are_none(line: str) -> None:
    assert parse(tuple(line.split())) is None


@pytest.mark.parametrize(
    ("line", "world"),
    [
        ("python t.py", World()),
        ("torchrun t.py", World()),
        ("torchrun --nproc-per-node 2 t.py", World(per_node=2)),
        ("torchrun --nproc-per-node=gpu --nnodes=2 t.py", World(nodes=2, per_node=4)),
        ("torchrun --nnodes=1:3 --nproc_per_node auto t.py", World(nodes=3, per_node=4)),
        ("deepspeed t.py", World(per_node=4)),
        ("deepspeed --num_gpus=2 t.py", World(per_node=2)),
        ("accelerate launch t.py", World(per_node=4)),
        ("accelerate launch --cpu t.py", World()),
        ("accelerate launch --num_processes 4 --num_machines 2 t.py", World(nodes=2, per_node=2)),
        ("accelerate launch --config_file a.yaml t.py", World(nodes=2, per_node=8)),
        ("accelerate launch --config_file gone.yaml t.py", World(per_node=4)),
    ],
)
def test_how_many_ranks_a_launcher_starts_with_four_gpus(line: str, world: World) -> None:
    launch = parse(tuple(line.split()))
    assert launch is not None
    stated = {"num_processes": 16, "num_machines": 2}
    config = stated if launch.config_file == "a.yaml" else {}
    assert launch.world(4, config) == world
