"""What axolotl's own loader stores a model in, against what is read of the config."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from jobs import axolotl_job

from adapters.conftest import Bench
from oomguard.adapters.axolotl import Axolotl
from oomguard.estimate.formats import raises, stored

# Its environment is not built beforehand.
pytestmark = [pytest.mark.extended, pytest.mark.timeout(1800)]

_FULL: dict[str, object] = {"adapter": None}
_QLORA: dict[str, object] = {"adapter": "qlora", "load_in_4bit": True}
CASES: dict[str, dict[str, object]] = {
    "lora-bf16": {"bf16": True},
    "lora-fp32": {},
    "lora-float16": {"float16": True},
    "lora-8-bit-bf16": {"bf16": True, "load_in_8bit": True},
    "lora-8-bit": {"load_in_8bit": True},
    "qlora-bf16": {**_QLORA, "bf16": True},
    "qlora-fp32": _QLORA,
    "full-fp32": _FULL,
    "full-bf16": {**_FULL, "bf16": True},
    "full-bf16-sdpa": {**_FULL, "bf16": True, "attn_implementation": "sdpa"},
}


def test_a_model_is_stored_as_its_config_is_read(tmp_path: Path) -> None:
    job = axolotl_job(tmp_path)
    base = yaml.safe_load(job.config.read_text())
    texts = {}
    for name, more in CASES.items():
        config = {key: value for key, value in (base | more).items() if value is not None}
        if "adapter" not in config:
            config = {key: value for key, value in config.items() if not key.startswith("lora_")}
        texts[f"{name}.yaml"] = yaml.safe_dump(config)
        (tmp_path / f"{name}.yaml").write_text(texts[f"{name}.yaml"])
    script = Path(__file__).with_name("axolotl_dtypes.py")
    done = subprocess.run(
        [str(job.python), "-W", "ignore", str(script), *texts],
        cwd=tmp_path, env=job.env, text=True, check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for row in json.loads(done.stdout.splitlines()[-1]):
        assert row["dtypes"] == read(texts[row["name"]], row["dtypes"]), row["name"]


def read(text: str, loaded: dict[str, int]) -> dict[str, int]:
    """Return the bytes of a number of each part that was loaded, as the config is read."""
    job = Bench(Axolotl()).job("axolotl train train.yaml", text)
    recipe = Axolotl().memory_settings(job)
    found = stored(job.asked, recipe)
    beside = 4 if raises(job.asked, recipe) else found.base_bytes
    parts = {"embeddings": beside, "head": beside, "norms": beside, "matrices": found.base_bytes}
    if job.asked.is_quantized:  # packed, into whatever is stored
        parts["matrices"] = loaded["matrices"]
    return {**parts, **({"adapter": found.trained_bytes} if "adapter" in loaded else {})}
