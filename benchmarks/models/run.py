"""Count how many models that a repository's examples name are in the catalogue.

    python benchmarks/models/run.py DIR --name OWNER/NAME --commit SHA [--examples FOLDER]

Reads the configs, scripts and notebooks under a checkout's folder of examples and updates the
repository's names in `names.json`, then the table in the README. Without DIR it only counts anew.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "src"))

from oomguard.catalogue.shipped import is_loose, transformers_config  # noqa: E402  found above

READ = {".yaml", ".yml", ".sh", ".py", ".ipynb", ".md"}
#: A setting whose value is a model, as a YAML key, a flag or an argument.
SETTING = re.compile(
    r"(?:^|[\s(\"'])(?:--)?(?:\w+_)?(?:model|model_name_or_path|model_id|base_model|model_path"
    r"|checkpoint_dir)\\?[\"']?\s*[:=\s]\s*\\?[\"']?([\w.~-]+(?:/[\w.~-]+)*|/[\w./~-]+)"
)
#: Folders of a job's own outputs, and placeholders.
OWN = re.compile(
    r"^(\.|~|/your|/path|path/|username/|saves/|outputs?/|megatron_output/)|checkpoint-|[${}]"
)
#: Where torchtune's configs expect a downloaded model: the name of the folder is the model's.
DOWNLOADED = re.compile(r"^/tmp/([\w.-]+)")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("dir", type=Path, nargs="?")
    options.add_argument("--name", help="owner/name of the repository")
    options.add_argument("--commit")
    options.add_argument("--examples", default="examples", help="its folder of examples")
    given = options.parse_args()
    file = HERE / "names.json"
    document = json.loads(file.read_text()) if file.exists() else {"repositories": {}}
    if given.dir is not None:
        document["repositories"][given.name] = {
            "commit": given.commit,
            "examples": given.examples,
            "names": sorted(set(names(given.dir / given.examples)), key=str.lower),
        }
    document = counted(document["repositories"])
    file.write_text(json.dumps(document, indent=1) + "\n")
    readme = HERE / "README.md"
    head = readme.read_text().split("<!-- made by", 1)[0]
    readme.write_text(f"{head}<!-- made by run.py -->\n{report(document)}")
    print(report(document))


def names(folder: Path) -> Iterator[str]:
    """Yield the models that the files of a folder name."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in READ:
            for match in SETTING.finditer(path.read_text(encoding="utf-8", errors="replace")):
                found = model(match.group(1))
                if found is not None:
                    yield found


def model(value: str) -> str | None:
    """Return the model that a setting's value names, None for an output or a placeholder."""
    downloaded = DOWNLOADED.match(value)
    if downloaded:
        return downloaded.group(1)
    value = value.rstrip("/.")
    is_hub_id = value.count("/") == 1 and not value.startswith("/")
    return value if is_hub_id and not OWN.search(value) else None


def counted(repositories: dict[str, Any]) -> dict[str, Any]:
    """Return the repositories with what each distinct name is taken for, and the share known."""
    distinct = {
        name: taken_for(name)
        for repository in repositories.values()
        for name in repository["names"]
    }
    ordered = dict(sorted(distinct.items(), key=lambda item: item[0].lower()))
    known = sum(found is not None for found in distinct.values())
    return {
        "share": round(known / len(distinct), 3),
        "known": known,
        "of": len(distinct),
        "repositories": repositories,
        "taken_for": ordered,
    }


def taken_for(name: str) -> str | None:
    found = transformers_config(name)
    return None if found is None else found.name


def report(document: dict[str, Any]) -> str:
    taken = document["taken_for"]
    lines = ["| repository | commit | models named | known | share |", "|---|---|---|---|---|"]
    for name, repository in document["repositories"].items():
        known = [one for one in repository["names"] if taken[one]]
        share = len(known) / len(repository["names"])
        lines.append(
            f"| {name} | {repository['commit'][:10]} | {len(repository['names'])} | {len(known)} "
            f"| {share:.0%} |"
        )
    lines.append(
        f"| distinct | | {document['of']} | {document['known']} | {document['share']:.0%} |"
    )
    unknown = ", ".join(name for name, found in taken.items() if found is None)
    loose = sum(_is_loose(name) for name in taken)
    return "\n".join(
        [*lines, "", f"Taken loosely, with a note: {loose}.", "", f"Not known: {unknown}.", ""]
    )


def _is_loose(name: str) -> bool:
    found = transformers_config(name)
    return found is not None and is_loose(name, found)


if __name__ == "__main__":
    main()
