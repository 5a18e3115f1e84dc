"""docs/monitor-protocol.md: its tables are what oomguard reads and what the monitor sends."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect

from oomguard import monitor
from oomguard.evidence.verdict import Phase
from oomguard.process.members import MARK
from oomguard.process.messages import (
    AnyReport,
    DeviceMemory,
    MonitorReport,
    Pass,
    ProcessMemory,
    StepSums,
    StepTimes,
    Window,
)

PAGE = (Path(__file__).parents[2] / "docs" / "monitor-protocol.md").read_text()
TYPES = {one.__struct_config__.tag: one for one in typing.get_args(AnyReport)}

NAMES = {
    inspect.IntType: "integer", inspect.FloatType: "number", inspect.StrType: "text",
    inspect.BoolType: "bool", inspect.EnumType: "phase", inspect.DictType: "shapes",
    ProcessMemory: "memory", DeviceMemory: "devices", Window: "window", Pass: "pass",
    StepTimes: "times", StepSums: "sums",
}  # fmt: skip


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table that follows a line of the page, without backticks."""
    assert PAGE.count(f"\n{heading}\n") == 1, heading
    lines = PAGE.split(f"\n{heading}\n", 1)[1].splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("|---"))
    table = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return table


def value(type_: inspect.Type) -> str:
    """Return a type as the page names it."""
    match type_:
        case inspect.UnionType(types):
            named = [value(one) for one in types if not isinstance(one, inspect.NoneType)]
            return f"{', '.join(named)} or null"
        case inspect.LiteralType(values):
            return ", ".join(map(str, values))
        case inspect.IntType(ge=0):
            return "count"
        case inspect.TupleType((first, _)):
            return f"two of {value(first)}"
        case inspect.VarTupleType(item):
            return f"list of {value(item)}"
    return NAMES[type_.cls if isinstance(type_, inspect.StructType) else type(type_)]


def fields(struct: type[msgspec.Struct]) -> list[tuple[str, str]]:
    """Return name and value of each field of a struct, as the page has them."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return [
        (one.encode_name, value(one.type) + ("" if one.required else ", may be missing"))
        for one in info.fields
    ]


def documented(heading: str) -> list[tuple[str, str]]:
    return [(name, shown) for name, shown, _ in rows(heading)]


COMMON = fields(MonitorReport)


def test_every_report_has_the_documented_fields():
    assert sorted(documented("## Fields of every report")) == sorted([*COMMON, ("type", "text")])


def test_every_type_has_the_documented_fields():
    of_page = sorted((kind, name, shown) for kind, name, shown, _ in rows("## Types"))
    of_code = [
        (kind, name, shown)
        for kind, struct in TYPES.items()
        for name, shown in fields(struct)
        if (name, shown) not in COMMON
    ]
    assert of_page == sorted(of_code)


def test_every_type_has_a_line_that_says_when_it_is_sent():
    assert re.findall(r"^- `(\w+)`: ", PAGE, re.MULTILINE) == list(TYPES)


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("## Memory", ProcessMemory),
        ("A device is one GPU:", DeviceMemory),
        ("A window is one optimizer step:", Window),
        ("A pass is one backward pass, of many before a report one of the last 32:", Pass),
        ("## Times", StepTimes),
        ("Sums are:", StepSums),
    ],
)
def test_memory_has_the_documented_fields(heading, struct):
    assert documented(heading) == fields(struct)


def test_the_documented_phases_are_those_that_are_read():
    (shown,) = [row[2] for row in rows("## Fields of every report") if row[0] == "phase"]
    assert re.split(r", | or ", shown) == [phase.value for phase in Phase]


def test_the_documented_variables_are_those_that_the_monitor_reads():
    assert [row[0] for row in rows("## Environment")] == list(monitor.VARIABLES)
    read = {
        name
        for path in monitor.PATH.rglob("*.py")
        for name in re.findall(r'"(OOMGUARD_\w+)"', path.read_text())
    }
    assert read == set(monitor.VARIABLES)
    assert f"`{MARK}`" in PAGE
