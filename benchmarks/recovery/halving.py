"""The same job with a loop of one's own around it, written with care.

It halves the batch size and doubles the accumulation, so the global batch is kept; it halves that
of the evaluation as well, and resumes from the latest checkpoint.
"""

from __future__ import annotations

import gc

from job import arguments, get_last_checkpoint_in, train


def attempt(script, training) -> bool:
    """Train, and return whether it fit."""
    try:
        train(script, training, get_last_checkpoint_in(training))
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) or training.per_device_train_batch_size == 1:
            raise
        return False
    return True


if __name__ == "__main__":
    script, training = arguments()
    while not attempt(script, training):
        gc.collect()
        training.per_device_train_batch_size //= 2
        training.gradient_accumulation_steps *= 2
        training.per_device_eval_batch_size = max(1, training.per_device_eval_batch_size // 2)
