"""The GPUs that people fine-tune on: how many bytes a job can use on each.

Usable is the total that CUDA reports to a process (`torch.cuda.mem_get_info`, "total capacity" in
PyTorch's own out-of-memory message), which is less than the name says: the driver and ECC take
their share. Where reports differ by driver or ECC, the smallest common figure is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from oomguard.errors import UsageError, Where, did_you_mean
from oomguard.units import GIB

MESSAGE = "total capacity in PyTorch's out-of-memory messages, public issue trackers, 2022-2026"
NOMINAL = "the vendor's data sheet, less 1.7%: what other cards of the generation lose"
NO_ECC = "the vendor's data sheet; cards of this memory report it nearly whole"


_HOPPER = frozenset({"H100", "H20", "H200", "GH200"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU; `names` are other spellings of it.

    `bfloat16` says whether it computes in bf16, `hopper` whether it is of that generation.
    """

    name: str
    usable_bytes: int
    source: str
    names: tuple[str, ...] = ()
    bfloat16: bool = True

    @property
    def hopper(self) -> bool:
        """Return whether it is a Hopper card: an H100, H20, H200 or GH200."""
        return self.name.split()[0] in _HOPPER


def _card(name: str, usable_gib: float, source: str, *names: str, bfloat16: bool = True) -> Card:
    size_bytes = int(usable_gib * GIB)
    return Card(name=name, usable_bytes=size_bytes, source=source, names=names, bfloat16=bfloat16)


CARDS = (
    _card("RTX 3060", 11.63, MESSAGE, "3060 12GB"),
    _card("RTX 3060 Ti", 7.79, MESSAGE),
    _card("RTX 3070", 7.79, MESSAGE),
    _card("RTX 3070 Ti", 7.79, NOMINAL),
    _card("RTX 3080", 9.78, MESSAGE, "3080 10GB"),
    _card("RTX 3080 12GB", 11.65, MESSAGE),
    _card("RTX 3080 Ti", 11.65, MESSAGE),
    _card("RTX 3090", 23.69, MESSAGE),
    _card("RTX 3090 Ti", 23.69, MESSAGE),
    _card("RTX 4060", 7.75, NOMINAL),
    _card("RTX 4060 Ti", 7.75, NOMINAL, "4060 Ti 8GB"),
    _card("RTX 4060 Ti 16GB", 15.7, NOMINAL),
    _card("RTX 4070", 11.63, MESSAGE),
    _card("RTX 4070 Super", 11.63, MESSAGE),
    _card("RTX 4070 Ti", 11.63, MESSAGE),
    _card("RTX 4070 Ti Super", 15.7, NOMINAL),
    _card("RTX 4080", 15.7, NOMINAL),
    _card("RTX 4080 Super", 15.7, NOMINAL),
    _card("RTX 4090", 23.64, MESSAGE),
    _card("RTX 5060 Ti 16GB", 15.6, NOMINAL),
    _card("RTX 5070", 11.5, NOMINAL),
    _card("RTX 5070 Ti", 15.47, NOMINAL),
    _card("RTX 5080", 15.47, NOMINAL),
    _card("RTX 5090", 31.36, MESSAGE),
    _card("RTX A4000", 15.7, NOMINAL, "A4000"),
    _card("RTX A5000", 23.68, NOMINAL, "A5000"),
    _card("RTX A6000", 47.4, MESSAGE, "A6000", "RTX A6000 48GB"),
    _card("RTX 6000 Ada", 47.4, MESSAGE, "6000 Ada", "RTX 6000 Ada Generation"),
    _card("T4", 14.56, MESSAGE, "Tesla T4", bfloat16=False),
    _card("V100 16GB", 15.77, MESSAGE, "V100-SXM2-16GB", "Tesla V100", "V100", bfloat16=False),
    _card("V100 32GB", 31.74, MESSAGE, "V100-SXM2-32GB", "V100S", bfloat16=False),
    _card("L4", 22.03, MESSAGE, "NVIDIA L4 24GB"),
    _card("A10", 22.05, MESSAGE, "A10 24GB"),
    _card("A10G", 22.05, MESSAGE, "A10G 24GB"),
    _card("A30", 23.5, MESSAGE, "A30 24GB"),
    _card("A40", 44.34, MESSAGE, "A40 48GB"),
    _card("L40", 44.4, MESSAGE, "L40 48GB"),
    _card("L40S", 44.39, MESSAGE, "L40S 48GB"),
    _card("A100 40GB", 39.39, MESSAGE, "A100-SXM4-40GB", "A100-PCIE-40GB", "A100-40"),
    _card("A100 80GB", 79.14, MESSAGE, "A100-SXM4-80GB", "A100-PCIE-80GB", "A100-80"),
    _card("H100", 79.1, MESSAGE, "H100 80GB", "H100-SXM5-80GB", "H100 PCIe"),
    _card("H100 NVL", 93.1, NOMINAL, "H100 94GB"),
    _card("H20", 95.0, NOMINAL, "H20 96GB"),
    _card("GH200", 94.5, NOMINAL, "GH200 96GB"),
    _card("H200", 139.72, MESSAGE, "H200 141GB"),
    _card("B200", 178.35, MESSAGE, "B200 180GB", "B200 192GB"),
    _card("MI210", 63.98, MESSAGE, "Instinct MI210"),
    _card("MI250", 63.98, MESSAGE, "MI250X", "Instinct MI250X"),  # one of its two dies
    _card("MI300A", 127.9, NO_ECC, "Instinct MI300A"),
    _card("MI300X", 191.69, MESSAGE, "Instinct MI300X"),
    _card("MI325X", 255.7, NO_ECC, "Instinct MI325X"),
    _card("MI355X", 287.6, NO_ECC, "Instinct MI355X", "MI350X"),
)

_NOISE = re.compile(r"nvidia|geforce|tesla|amd|instinct|graphics|gpu|card|gib|gb|[^a-z0-9]")
#: A number that is the generation's name only with its prefix: "rtx3090" and "3090" are one card.
_PREFIX = re.compile(r"^(rtx|gtx)")


def card_named(name: str) -> Card:
    """Find a card by a name as people write it: case, spaces, vendor and GB do not matter.

    Raises:
        UsageError: if there is none of that name, or the name leaves the memory open.
    """
    wanted = _key(name)
    spellings = {_key(word): card for card in CARDS for word in (card.name, *card.names)}
    if wanted in spellings:
        return spellings[wanted]
    several = [card.name for card in CARDS if wanted and _key(card.name).startswith(wanted)]
    known = [card.name for card in CARDS]
    guess = f"Which of {', '.join(several)}?" if several else _nearest(name, known)
    raise UsageError(
        f"no GPU called {name!r} is in the table",
        where=Where(key="--gpu"),
        next_step=f"{guess} Or give --gpu-memory SIZE, such as 24GiB.".strip(),
    )


def _nearest(name: str, known: list[str]) -> str:
    by_key = {_key(card): card for card in known}
    guess = did_you_mean(_key(name), by_key)
    for key, card in by_key.items():
        guess = guess.replace(f"'{key}'", f"'{card}'")
    return guess or f"Known are {', '.join(known)}."


def _key(name: str) -> str:
    return _PREFIX.sub("", _NOISE.sub("", name.lower()))
