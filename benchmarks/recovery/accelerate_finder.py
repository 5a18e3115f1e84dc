"""The same job with `find_executable_batch_size` around it, as in accelerate's guide."""

from __future__ import annotations

from accelerate.utils import find_executable_batch_size
from job import arguments, get_last_checkpoint_in, train

if __name__ == "__main__":
    script, training = arguments()
    checkpoint = get_last_checkpoint_in(training)

    @find_executable_batch_size(starting_batch_size=training.per_device_train_batch_size)
    def attempt(batch_size: int) -> None:
        """Train with this batch size."""
        training.per_device_train_batch_size = batch_size
        train(script, training, checkpoint)

    attempt()
