"""Draw the 60 rows that are checked manually: `python benchmarks/reading/sample.py`.

Prints each drawn row of `tables/` beside its verdict in `checked.json`. A verdict is `right`,
`refused` (for the true reason), `wrong`, or `open`: nobody has checked the row yet.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
SEED, SIZE = 60, 60


def main() -> None:
    rows = []
    for path in sorted((HERE / "tables").glob("*.json")):
        table = json.loads(path.read_text())
        rows += [(table["repository"], row) for row in table["rows"]]
    drawn = sorted(random.Random(SEED).sample(range(len(rows)), SIZE))
    checked = json.loads((HERE / "checked.json").read_text())
    verdicts = Counter()
    for number in drawn:
        repository, row = rows[number]
        verdict, why = checked.get(f"{repository} {row['file']}", ("open", ""))
        verdicts[verdict] += 1
        answer = row["fits"] or row["refusal"]
        print(f"{verdict:8} {repository} {row['file']} [{row['framework']}, {row['method']}, "
              f"{(row['trained'] or {}).get('what')}, {answer[:80]}] {why}")  # fmt: skip
    print(dict(verdicts))


if __name__ == "__main__":
    main()
