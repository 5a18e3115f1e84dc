"""Plots of a report: their size over long runs, their colours, and where a limit is drawn."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from core.test_report import report
from core.test_report_page import Page
from oomguard.cli.report_page import page
from oomguard.run.report import FitReport
from oomguard.run.series import AttemptSeries, series_of
from reported import on_card, reported

pytest.importorskip("matplotlib")
from oomguard.cli.report_plots import plots

GIB = 1 << 30


def attempt(number: int, steps: int, *, devices: int = 1) -> AttemptSeries:
    """Return the series of an attempt that evaluates every 100 steps."""
    one = on_card(reserved_bytes=6 * GIB, total_bytes=24 * GIB)["cuda"][0]
    memory = {"rss_bytes": GIB, "peak_rss_bytes": GIB,
              "cuda": [{**one, "device": device} for device in range(devices)]}  # fmt: skip
    some = {
        phase: reported("step", memory=memory, phase=phase).report for phase in ("forward", "eval")
    }
    reports = (_at(some["eval" if at % 100 == 0 else "forward"], at / 4, at) for at in range(steps))
    losses = (("step", float(at), 1 / (1 + at)) for at in range(steps))
    return series_of(number, reports, losses, private_data=False)


def _at(report, t: float, step: int):
    return type(report)(**{**{name: getattr(report, name) for name in report.__struct_fields__},
                           "t": t, "step": step})  # fmt: skip


def capped(whole: FitReport, **limits: object) -> FitReport:
    return replace(whole, limits=replace(whole.limits, **limits))


def test_a_run_of_100_000_steps_on_2_gpus_stays_small():
    whole = report()
    series = [attempt(1, 500, devices=2), attempt(2, 100_000, devices=2)]
    text = page(whole, plots(whole, series))
    assert text.count("<svg") == 4
    assert len(text.encode()) < 2 << 20
    assert Page(text).open == []


def test_many_attempts_share_the_points_of_a_plot():
    whole = report()
    text = page(whole, plots(whole, [attempt(number, 1500) for number in range(1, 51)]))
    assert len(text.encode()) < 2 << 20


def test_a_plot_is_well_formed_and_has_only_colours_of_the_page():
    whole = capped(report(), gpu_memory_bytes=8 * GIB)
    drawn = plots(whole, [attempt(1, 20), attempt(2, 30)])
    for svg in re.findall(r"<svg.*?</svg>", drawn.memory + drawn.loss, re.DOTALL):
        ET.fromstring(svg)
        assert set(re.findall(r"(?:stroke|fill): ([^;\"]+)", svg)) <= {
            "none", *(f"var(--{name})" for name in
                      ("ink", "soft", "line", "cap", "c0", "c1", "p2", "p3"))
        }  # fmt: skip
    names = re.findall(r'\bid="([^"]+)"', page(whole, drawn))
    assert len(names) == len(set(names))
    assert "limit: 8.00 GiB" in drawn.memory
    assert "size of the GPU" not in drawn.memory


def test_without_a_limit_the_size_of_the_gpu_is_drawn():
    assert "size of the GPU: 24.00 GiB" in plots(report(), [attempt(1, 20)]).memory


@pytest.mark.parametrize(("by", "is_drawn"), [("rlimit", True), ("cgroup", False), (None, False)])
def test_a_limit_on_the_host_is_drawn_only_where_it_counts_what_is_drawn(by, is_drawn):
    memory = {"rss_bytes": GIB, "peak_rss_bytes": GIB, "data_bytes": 2 * GIB, "cuda": []}
    one = reported("step", memory=memory).report
    series = series_of(1, [_at(one, n, n) for n in range(9)], private_data=by == "rlimit")
    whole = capped(report(), host_memory_bytes=3 * GIB, host_memory_by=by)
    drawn = plots(whole, [series]).memory
    assert ("limit: 3.00 GiB" in drawn) == is_drawn
    together = "the limit of 3.00 GiB counts all processes of the job together"
    assert (together in drawn) != is_drawn


def test_the_same_data_give_the_same_page():
    first, second = (plots(report(), [attempt(1, 20)]) for _ in range(2))
    assert first == second


def test_a_failed_allocation_is_marked_and_a_run_without_reports_says_so():
    memory = {**on_card(reserved_bytes=GIB)}
    oom = reported("oom", memory=memory).report
    marked = plots(report(), [series_of(1, [oom], private_data=False)])
    assert "memory held when an allocation failed" in marked.memory
    assert marked.loss == ""
    nothing = plots(report(), [series_of(1, [], private_data=False)])
    assert "No process of this run reported its memory." in nothing.memory
