"""Run train.py where there is no GPU; it takes the same flags.

PEFT 0.18.1 decomposes the residuals of staged LoftQ on "cuda" whatever device the model is on. Here
it does so on the CPU; nothing else differs.
"""

from __future__ import annotations

import inspect

import train
from peft.utils import loftq_utils


def compute_on_cpu() -> None:
    """Replace PEFT's function by the same one with "cpu" for "cuda"."""
    source = inspect.getsource(loftq_utils._loftq_init_new).replace('"cuda"', '"cpu"')  # noqa: SLF001
    exec(compile(source, loftq_utils.__file__, "exec"), loftq_utils.__dict__)  # noqa: S102


if __name__ == "__main__":
    compute_on_cpu()
    train.main()
