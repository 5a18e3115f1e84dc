"""A peak is shown with a limit only in the measure that the limit counts in, wherever it is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generators import make_job
from oomguard.cli.peak_text import Measure, main_peak, peaks
from oomguard.cli.report_page import Plots, page
from oomguard.cli.report_text import markdown
from oomguard.cli.run_lines import exit_line
from oomguard.evidence.verdict import Kind, Phase, Verdict
from oomguard.job.plan import Plan
from oomguard.process.limits import CapBy
from oomguard.run.attempt import AttemptSpec
from oomguard.run.events import Exited, Finished, Limits, Planned, Progress, RunStarted, Status
from oomguard.run.report import build
from oomguard.run.state import Attempt, RunRecord, replay
from oomguard.strategy import NEW_RECIPE

GIB = 1 << 30
#: Resident, private data, allocated and reserved: in GiB, each another.
HOST, DATA, GPU, RESERVED = 3, 5, 7, 9
CAP = 11


def limits(**caps: object) -> Limits:
    return Limits(ladder=(), allow=NEW_RECIPE, max_attempts=9, **caps)


def trained(found: Limits, *, gpu: bool) -> RunRecord:
    plan = Plan(micro_batch=4, accumulation=2)
    on_gpu = {"device_bytes": GPU * GIB, "reserved_bytes": RESERVED * GIB} if gpu else {}
    return replay(
        [
            RunStarted(t=0, run="r", version="0", at="now", job=make_job(plan), limits=found),
            Planned(t=1, attempt=1, spec=AttemptSpec(plan=plan)),
            Progress(
                t=2, attempt=1, pid=7, rank=0, step=2, phase=Phase.OPTIMIZER,
                host_bytes=HOST * GIB, data_bytes=DATA * GIB, **on_gpu,
            ),
            Exited(t=3, attempt=1, returncode=0, verdict=Verdict(kind=Kind.OK)),
            Finished(t=4, status=Status.FIT, reason="trained to completion"),
        ]
    )  # fmt: skip


def shown(record: RunRecord) -> dict[str, str]:
    """Return what each place shows of the peaks."""
    report = build(record)
    verdict = record.last.verdict
    assert verdict is not None
    (row,) = (line for line in markdown(report) if line.startswith("| 1 |"))
    whole = re.search(r"<dt>peak</dt><dd>(.*?)</dd>", page(report, Plots()))
    assert whole is not None
    return {
        "terminal": exit_line(record.last, verdict, record.limits),
        "markdown": row.split(" | ")[3],
        "page": whole[1],
    }


BY_PROCESS = {"host_memory_bytes": CAP * GIB, "host_memory_by": CapBy.RLIMIT.value}
TOGETHER = {"host_memory_bytes": CAP * GIB, "host_memory_by": CapBy.CGROUP.value}
ON_GPU = {"gpu_memory_bytes": CAP * GIB}


@pytest.mark.parametrize(
    ("caps", "gpu", "size", "measure", "limited"),
    [
        ({}, False, HOST, Measure.HOST, False),
        (BY_PROCESS, False, DATA, Measure.DATA, True),
        (TOGETHER, False, HOST, Measure.HOST, False),
        ({}, True, GPU, Measure.GPU, False),
        (ON_GPU, True, RESERVED, Measure.RESERVED, True),
        (BY_PROCESS, True, GPU, Measure.GPU, False),
        ({**ON_GPU, **BY_PROCESS}, True, RESERVED, Measure.RESERVED, True),
        (ON_GPU, False, HOST, Measure.HOST, False),
    ],
)
def test_each_place_shows_the_peak_that_the_limit_counts(caps, gpu, size, measure, limited):
    found = shown(trained(limits(**caps), gpu=gpu))
    limit = f" (limit {CAP}.00 GiB)" if limited else ""
    name = measure.value
    assert f"peak {name} {size}.00 GiB{limit} " in found["terminal"] + " "
    assert found["markdown"] == f"{size}.00 GiB {name}{limit}"
    assert f"{size}.00 GiB {name}{limit}" in found["page"].split(", ")
    others = [text for text in found["page"].split(", ") if "(limit" in text]
    counted = {f"{RESERVED}.00": ON_GPU, f"{DATA}.00": BY_PROCESS}
    for text in others:
        assert counted[text.partition(" ")[0]].items() <= caps.items()


some = st.none() | st.integers(1, 1 << 40)


@given(
    st.builds(
        Attempt,
        number=st.just(1),
        spec=st.just(AttemptSpec(plan=Plan(micro_batch=1, accumulation=1))),
        host_peak_bytes=some,
        data_peak_bytes=some,
        device_peak_bytes=some,
        reserved_peak_bytes=some,
    ),
    some,
    some,
    st.none() | st.sampled_from([by.value for by in CapBy]),
)
def test_a_limit_stands_beside_its_own_measure_alone(attempt, on_host, on_gpu, by):
    found = limits(host_memory_bytes=on_host, gpu_memory_bytes=on_gpu, host_memory_by=by)
    known = list(peaks(attempt, found))
    for peak in known:
        if peak.limit_bytes is None:
            continue
        counted = {
            Measure.RESERVED: (attempt.reserved_peak_bytes, on_gpu),
            Measure.DATA: (attempt.data_peak_bytes, on_host if by == CapBy.RLIMIT else None),
        }
        assert counted[peak.measure] == (peak.size_bytes, peak.limit_bytes)
    best = main_peak(attempt, found)
    assert best in known or (best is None and not known)
    on_card = [peak for peak in known if "GPU" in peak.measure.value]
    assert best is None or best in (on_card or known)
