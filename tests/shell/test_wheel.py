"""What a user installs: the wheel, built from the source archive, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import oomguard

ROOT = Path(__file__).resolve().parents[2]
JOB = """
import sys
micro = int(sys.argv[sys.argv.index("--per_device_train_batch_size") + 1])
if micro > 8:
    raise MemoryError("too much")
print("trained")
"""


def call(*argv: str | Path, cwd: Path, code: int = 0) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    dist = tmp_path_factory.mktemp("dist")
    # The source archive first, then the wheel from it: what the archive lacks, the wheel lacks.
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, cwd=ROOT)
    (archive,) = dist.glob("*.tar.gz")
    assert archive.stat().st_size > 0
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A fresh environment with the wheel alone; its dependencies come from the tests' own."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    # --python: what is installed, and uninstalled before, is looked for there and nowhere else.
    call(
        *(sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "--quiet"),
        *("--disable-pip-version-check", "--no-deps", "--no-index", wheel),
        cwd=home,
    )
    folders = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(folders) + "\n")
    return home / "bin"


#: An extra, the pins of versions known to work together, and a recipe that it traces.
TRACED = {
    "trace": ("trl", "hf_trainer/trl.yaml"),
    "trace-litgpt": ("litgpt", "litgpt/train.yaml"),
    "trace-torchtune": ("torchtune", "torchtune/train.yaml"),
}


@pytest.mark.extended
@pytest.mark.frameworks
@pytest.mark.parametrize("extra", TRACED)
def test_a_fresh_install_with_its_extra_traces(wheel, tmp_path, extra):
    pins, recipe = TRACED[extra]
    home = tmp_path / "venv"
    venv.create(home, with_pip=True, symlinks=True)
    call(
        *(home / "bin" / "python", "-m", "pip", "install", "--quiet", f"{wheel}[{extra}]"),
        *("--constraint", ROOT / "tests" / "frameworks" / "pins" / f"{pins}.txt"),
        cwd=tmp_path,
    )
    (tmp_path / "job.yaml").write_text((ROOT / "recipes" / recipe).read_text())
    said = call(home / "bin" / "oomguard", "plan", "job.yaml", "--gpu", "3090", "--json",
        "--python", home / "bin" / "python", cwd=tmp_path)  # fmt: skip
    document = json.loads(said)
    assert document["asked"]["estimate"]["method"].startswith("trace")
    assert not [note for note in document["notes"] if "not traced" in note or "[trace" in note]


def test_the_wheel_carries_what_is_no_module(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    strategies = {f"oomguard/_strategies/{path.name}" for path in ROOT.glob("strategies/*.py")}
    inside = {
        path.relative_to(ROOT / "src").as_posix()
        for path in ROOT.glob("src/oomguard/monitor/path/**/*.py")
    }
    assert len(strategies) > 6
    assert len(inside) > 6
    assert names >= strategies | inside
    assert {"oomguard/fit-report.schema.json", "oomguard/py.typed"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_it_is_the_wheel_that_runs_and_it_knows_its_version(installed, tmp_path):
    where = call(
        installed / "python", "-c", "import oomguard; print(oomguard.__file__)", cwd=tmp_path
    )
    assert where.startswith(str(installed.parent))
    assert call(installed / "oomguard", "--version", cwd=tmp_path) == (
        f"oomguard {oomguard.__version__}\n"
    )


def test_its_ladder_is_the_one_of_the_checkout(installed, tmp_path):
    ladder = json.loads(call(installed / "oomguard", "ladder", "--json", cwd=tmp_path))
    files = sorted(path.stem for path in ROOT.glob("strategies/[0-9]*.py"))
    assert [row["id"] for row in ladder["strategies"]] == [name.split("_", 1)[1] for name in files]


def test_it_explains_a_log(installed, tmp_path):
    (tmp_path / "log.txt").write_text("Traceback (most recent call last):\nMemoryError\n")
    said = call(installed / "oomguard", "explain", "log.txt", "--json", cwd=tmp_path)
    assert json.loads(said)["kind"] == "host_oom"


def test_it_launches_a_job_with_its_reporter_and_ladder(installed, tmp_path):
    (tmp_path / "job.py").write_text("import sitecustomize as s; print(s.__file__)\n" + JOB)
    said = call(
        *(installed / "oomguard", "launch", "--json", "--ladder", "halve_micro_batch"),
        *("--fits", "fits.db", "--"),
        *(sys.executable, "job.py", "--per_device_train_batch_size", "16"),
        cwd=tmp_path,
    )
    document = json.loads(said)
    assert document["status"] == "fit"
    assert [one["plan"]["micro_batch"] for one in document["attempts"]] == [16, 8]
    log = Path(document["run"], "attempts", "001", "log.txt").read_text()
    assert log.startswith(str(installed.parent))
