"""One request on stdin, one answer on stdout."""

from __future__ import annotations

import gc
import json
import os
import sys


def main() -> int:
    """Answer on the real stdout; whatever the model code prints goes to stderr."""
    gc.disable()  # nothing that is imported here is garbage
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from .answer import answer  # noqa: PLC0415  imports torch, which may print
    from .request import parse  # noqa: PLC0415

    try:
        request = parse(json.load(sys.stdin))
    except (KeyError, TypeError, ValueError) as error:
        document = {"v": 1, "error": {"kind": "request", "message": f"{error!r}"}}
    else:
        document = answer(request)
    json.dump(document, channel)
    channel.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
