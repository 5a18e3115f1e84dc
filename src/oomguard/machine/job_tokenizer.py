"""Count tokens with the model's own tokenizer, in the job's Python.

Only `tokenizers` and the tokenizer's file are used, never the code of a model repository. Any other
outcome than a count of every text (no such package, an unreadable file, too slow) is None.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT_S = 20.0
#: Truncation and padding are stored in the file, and would hide how long a text is. The working
#: folder is not searched: a script there may have the name of a package.
_CODE = """\
import sys
sys.path[:] = [place for place in sys.path if place]
import json
from tokenizers import Tokenizer
asked = json.load(sys.stdin)
tokenizer = Tokenizer.from_file(asked["file"])
tokenizer.no_truncation()
tokenizer.no_padding()
encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
counts = []
for first in range(0, len(asked["texts"]), 1000):
    counts += [len(one.ids) for one in encode(asked["texts"][first : first + 1000])]
json.dump(counts, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class JobTokenizer:
    """A tokenizer's file and the Python that can read it; counts are kept while the file stays."""

    python: str
    file: Path
    timeout_s: float = TIMEOUT_S
    _known: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> tuple[int, ...] | None:
        """Return the number of tokens of each text, None if they cannot be counted."""
        if not texts:
            return ()
        try:
            key = _identity(self.file, texts)
            if key not in self._known:
                self._known[key] = self._count(texts)
            return self._known[key]
        except (OSError, ValueError, subprocess.SubprocessError):
            return None

    def _count(self, texts: Sequence[str]) -> tuple[int, ...]:
        done = subprocess.run(
            [self.python, "-c", _CODE],
            input=json.dumps({"file": str(self.file.absolute()), "texts": list(texts)}).encode(),
            capture_output=True,
            check=True,
            timeout=self.timeout_s,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        )
        counts = json.loads(done.stdout)
        whole = isinstance(counts, list) and len(counts) == len(texts)
        if not (whole and all(type(count) is int and count >= 0 for count in counts)):
            raise ValueError("not one count for each text")
        return tuple(counts)


def _identity(file: Path, texts: Sequence[str]) -> str:
    state = file.stat()
    digest = hashlib.sha256(repr((str(file), state.st_mtime_ns, state.st_size)).encode())
    for text in texts:
        digest.update(text.encode("utf-8", errors="surrogatepass") + b"\0")
    return digest.hexdigest()
