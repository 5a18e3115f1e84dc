"""Toy training job without a framework: Trainer flags, four steps, one out-of-memory error.

It fails at its second step if the micro batch is larger than 4. Each process appends the
monotonic time of its start, and of its OOM, to `marks.txt` in the working directory.
"""

import argparse
import sys
import time
from pathlib import Path


def mark(what: str) -> None:
    with Path("marks.txt").open("a") as marks:
        marks.write(f"{what} {time.monotonic()}\n")


def main() -> int:
    mark("start")
    parser = argparse.ArgumentParser()
    parser.add_argument("--per_device_train_batch_size", type=int, default=8)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--output_dir", default="out")
    parser.add_argument("--max_steps", type=int, default=4)
    parser.add_argument("--save_steps", type=int, default=0)
    args, _ = parser.parse_known_args()
    for step in range(1, args.max_steps + 1):
        if step == 2 and args.per_device_train_batch_size > 4:
            mark("oom")
            print(
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
                file=sys.stderr,
                flush=True,
            )
            return 1
        print(f"{{'loss': 1.0, 'step': {step}}}", flush=True)
    print("{'train_runtime': 1.0}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
