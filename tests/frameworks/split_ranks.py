"""Train a tiny model on two ranks, without limits and under some, and print what differed.

    torchrun --nproc-per-node 2 split_ranks.py CASE...

Rank 0 prints one JSON object: for each case the largest relative differences on either rank, and
what each rank told the monitor. What is compared is in split_runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from typing import Any

from split_runs import CASES, ROWS, TOKENS, Case, InOrder, differences, reported
from torch import distributed

SHORT, LONG = TOKENS // 2, 4 * TOKENS
#: Batches come to the ranks in turn: the long row is in the second step's batch of one of them.
ON_RANK_1 = (*[SHORT] * 3 * ROWS, LONG, *[SHORT] * (5 * ROWS - 1))
ON_BOTH = (*[SHORT] * 2 * ROWS, LONG, *[SHORT] * ROWS, LONG, *[SHORT] * (5 * ROWS - 2))


class LimitedRank(InOrder):
    """Limits only the ranks that `limited` names."""

    limited = (0, 1)

    def get_batch_samples(self, *args: Any, **others: Any) -> Any:
        """Leave this rank as it is unless it is limited."""
        if distributed.get_rank() not in self.limited:
            self.room = None
        return super().get_batch_samples(*args, **others)


class OnlyRank1(LimitedRank):
    """Limits rank 1."""

    limited = (1,)


class Interrupted(LimitedRank):
    """Limits rank 0, and ends something in the second step of the limited training."""

    limited = (0,)

    def get_batch_samples(self, *args: Any, **others: Any) -> Any:
        """Watch what the model gets."""
        if self.room is not None:

            def watch(_: Any, __: Any, inputs: dict[str, Any]) -> None:
                if self.state.global_step == 1:
                    self.end(distributed.get_rank(), len(inputs["input_ids"]))

            self.model.register_forward_pre_hook(watch, with_kwargs=True)
        return super().get_batch_samples(*args, **others)

    def end(self, rank: int, rows: int) -> None:
        """End what is to end before `rows` go through the model."""


class Killed(Interrupted):
    """Loses rank 0 while it runs a step again."""

    def end(self, rank: int, rows: int) -> None:
        """End the process before a part of a batch."""
        if rank == 0 and rows < ROWS:
            os.kill(os.getpid(), signal.SIGKILL)


class Fails(Interrupted):
    """Fails on rank 1 for another reason, while rank 0 runs a step again."""

    def end(self, rank: int, rows: int) -> None:
        """Fail before a whole batch."""
        if rank == 1 and rows == ROWS:
            raise ValueError("a mistake of the job's own")


def on_ranks(lengths: tuple[int, ...], **others: Any) -> Case:
    """Return a case of three or more steps of both ranks."""
    base = Case(lengths=lengths, rows=len(lengths), trainer=LimitedRank)
    return replace(base, **others)


ACCUMULATED = {"gradient_accumulation_steps": 2}
CASES.update(
    {
        "fixed_on_both": on_ranks((TOKENS,) * 6 * ROWS),
        "outlier_on_one": on_ranks(ON_RANK_1),
        "one_without_room": on_ranks((TOKENS,) * 6 * ROWS, trainer=OnlyRank1),
        "outlier_on_both": on_ranks(ON_BOTH),
        "uneven_on_both": on_ranks((64, 23, 40, 61, 12, 64, 50), rows=6 * ROWS),
        "in_a_later_micro_batch": on_ranks(ON_RANK_1 * 2, args=ACCUMULATED),
        "mean_on_both": on_ranks((64, 23, 40), rows=6 * ROWS, counted=False),
        "checkpointing_on_both": on_ranks(ON_RANK_1, args={"gradient_checkpointing": True}),
        "lora_on_both": on_ranks(ON_BOTH, lora=True),
        "single_row": on_ranks((TOKENS,) * 6 * ROWS, trainer=OnlyRank1, room=2 << 20),
        "killed": on_ranks((TOKENS,) * 6 * ROWS, trainer=Killed),
        "fails": on_ranks((TOKENS,) * 6 * ROWS, trainer=Fails),
    }
)

if __name__ == "__main__":
    distributed.init_process_group("gloo")
    steps = reported()
    found = {}
    for name in sys.argv[1:]:
        mine = differences(CASES[name], steps)
        if "error" in mine:  # as a job's own exception would end its rank
            sys.exit(f"{name} ended: {mine['error']}")
        every: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(every, mine)
        found[name] = every
    if distributed.get_rank() == 0:
        print(json.dumps(found), flush=True)
    distributed.destroy_process_group()
