"""A line at the bottom of a terminal, below the job's own output, which scrolls above it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

#: On smaller terminals a line of them is worth more than this one.
_LEAST_ROWS = 10
_SAVE, _RESTORE = "\x1b7", "\x1b8"
_CLEAR = "\x1b[2K"


@dataclass(slots=True)
class LiveLine:
    """Keeps the last row of a terminal for one line: all else scrolls in the rows above.

    `write` prints to the terminal, `size` returns how large it is now.
    """

    write: Callable[[str], None]
    size: Callable[[], os.terminal_size]
    _rows: int = 0  # of the terminal, as the scrolling region was set; 0 for none

    def show(self, text: Callable[[int], str]) -> None:
        """Draw what `text` returns for the width of the terminal."""
        columns, rows = self.size()
        if rows < _LEAST_ROWS:
            self.close()
            return
        if rows != self._rows:
            # A line feed makes room if the cursor is in the last row.
            self.write(f"\n{_SAVE}\x1b[1;{rows - 1}r{_RESTORE}\x1b[1A")
            self._rows = rows
        self.write(f"{_SAVE}\x1b[{rows};1H{_CLEAR}{text(columns)}{_RESTORE}")

    def close(self) -> None:
        """Return the last row to the terminal."""
        if self._rows:
            self.write(f"{_SAVE}\x1b[{self._rows};1H{_CLEAR}\x1b[r{_RESTORE}")
            self._rows = 0
