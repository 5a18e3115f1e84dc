"""The trace request: its documentation, its fields, and what it refuses."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import oomguard.tracer
from oomguard.job.plan import Plan
from oomguard.predict.trace_request import _ELSEWHERE

sys.path.append(str(oomguard.tracer.PATH))
from oomguard_tracer.request import Variant, parse

PROTOCOL = Path(__file__).parents[2] / "docs" / "tracer-protocol.md"
KNOWN = {field.name for field in fields(Variant)} - {"id"}
OF_PLAN = {field.name for field in fields(Plan)}


def request(**changed: object) -> dict[str, object]:
    variant = {"id": "x", "plan": {}, "recipe": {}}
    return {"v": 1, "model": {"family": "hf", "config": {}}, "variants": [variant], **changed}


def test_the_documented_recipe_is_what_the_tracer_reads() -> None:
    table = PROTOCOL.read_text().split("| field |", 1)[1].split("## Answer", 1)[0]
    documented = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert documented == KNOWN - OF_PLAN


def test_the_tracer_knows_every_field_of_a_plan_that_is_sent() -> None:
    assert OF_PLAN - set(_ELSEWHERE) <= KNOWN


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (request(trust_remote_code=True), "trust_remote_code"),
        (request(model={"family": "hf", "config": {}, "class": "Llama"}), "class"),
        (request(variants=[{"id": "x", "recipe": {"shift_copies": True}}]), "shift_copies"),
        (request(variants=[{"id": "x", "plan": {"world": 8}}]), "world"),
        (request(variants=[{"id": "x", "recipe": {"lora": {"rank": 8, "r": 8}}}]), "in lora: r"),
        (request(variants=[{"id": "x", "plans": {}}]), "plans"),
    ],
)
def test_an_unknown_key_is_refused(document: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key.*{named}"):
        parse(document)


def test_a_request_without_unknown_keys_is_read() -> None:
    assert parse(request()).variants[0].micro_batch == 1
