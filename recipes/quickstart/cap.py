"""Print the memory cap for this machine under which the quickstart fits at 4 samples, not at 8.

    oomguard launch recipes/quickstart/train.yaml $(python recipes/quickstart/cap.py)

With a GPU the cap is on its memory, without one on the data memory of the process. The second
holds libraries and thread stacks as well, which differ between machines: they are measured.
"""

from __future__ import annotations

from pathlib import Path

import torch
import train  # noqa: F401  what the job imports counts towards the baseline
from transformers import AutoModelForCausalLM

MIB = 1 << 20
# Logits, their log-probabilities and their gradient: 256 tokens x 32768 words x 4 bytes each.
SAMPLE_MIB = 3 * 256 * 32768 * 4 // MIB
SAMPLES = 6


def main() -> None:
    """Print the flag for `oomguard launch`."""
    if torch.cuda.is_available():
        print(f"--gpu-memory={SAMPLES * SAMPLE_MIB}MiB")  # noqa: T201
    else:
        print(f"--host-memory={_data_mib() + SAMPLES * SAMPLE_MIB}MiB")  # noqa: T201


def _data_mib() -> int:
    """Measure the data memory of a process that has imported everything and started its threads."""
    model = AutoModelForCausalLM.from_pretrained("quickstart/model")
    model(torch.zeros(1, 64, dtype=torch.long)).logits.sum().backward()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) // 1024


if __name__ == "__main__":
    main()
