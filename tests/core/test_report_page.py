"""The page of a fit-report: what it says, and that no text in it is markup or a secret."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import msgspec
import pytest

from core.test_report import report
from oomguard.cli.markup import Markup, element, escaped
from oomguard.cli.report_page import DIFF_LINES, FINDINGS, Plots, headline, page, without_plots
from oomguard.evidence.verdict import Kind
from oomguard.job.plan import Plan
from oomguard.job.provenance import (
    DataFile,
    DataFingerprint,
    Environment,
    GitState,
    GpuModel,
)
from oomguard.run.events import Predicted, Status
from oomguard.run.report import FitReport, from_document, to_json

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\"'&lt;\x00\u202e"
TOKEN = "hf_ABCdefGHIjklMNOpqrSTUvwxYZ012345"
VOID = {"meta", "br", "hr"}


class Page(HTMLParser):
    """The tags, attributes and text of a page; `open` are the elements that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


ENVIRONMENT = Environment(
    system="Linux",
    gpus=(GpuModel(name="A10G", total_bytes=1 << 34),),
    driver="570",
    packages={"torch": "2.8.0"},
    git=GitState(commit="abc", dirty=True),
)
DATA = DataFingerprint(
    files=(DataFile(path="a.json", size_bytes=5, sha256="ab", hashed_bytes=5),),
    elsewhere=("org/data",),
)


def filled(text: str, whole: FitReport) -> FitReport:
    """Return a report with `text` in every field that takes it."""
    document = msgspec.to_builtins(to_json(whole))
    document["environment"] = msgspec.to_builtins(ENVIRONMENT)
    document["data"] = msgspec.to_builtins(DATA)
    count = 0

    def fill(holder, key):
        nonlocal count
        before = holder[key]
        if isinstance(before, str):
            holder[key] = text
            try:
                from_document(document)
                count += 1
            except msgspec.ValidationError:
                holder[key] = before
        elif isinstance(before, dict | list):
            for one in list(before if isinstance(before, dict) else range(len(before))):
                fill(before, one)

    for key in list(document):
        fill(document, key)
    assert count > 12
    document["environment"]["packages"][text] = text
    return from_document(document)


@pytest.mark.parametrize("status", Status)
def test_the_page_is_whole_and_asks_no_host_for_anything(status):
    text = page(report(status), Plots())
    seen = Page(text)
    assert seen.open == []
    assert seen.tags["script"] == 1
    assert not {"link", "img", "iframe", "object", "base"} & set(seen.tags)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in seen.attributes}
    assert "url(" not in text
    assert "@import" not in text
    names = [value for name, value in seen.attributes if name == "id"]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("status", Status)
def test_no_text_becomes_markup(status):
    plain, hostile = report(status), filled(HOSTILE, report(status))
    seen = Page(page(hostile, without_plots(HOSTILE)))
    assert seen.open == []
    assert seen.tags["script"] == 1
    assert seen.tags["img"] == 0
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    assert "<script>alert(1)</script>" in seen.text, "it is shown as it is"
    assert not set("\x00\u202e") & set(seen.text)
    expected = Page(page(plain, without_plots("note"))).tags
    assert set(seen.tags) <= {*expected, "p", "details", "summary", "pre", "ul", "li"}


@pytest.mark.parametrize("status", Status)
def test_no_secret_reaches_the_page(status):
    assert TOKEN not in page(filled(f"--token {TOKEN}", report(status)), without_plots(TOKEN))


def test_the_headline_is_how_it_ended():
    assert headline(report()) == (
        "It trained in 2 attempts; the config that fits is changed (same math): "
        "micro_batch 16 -> 8, accumulation 1 -> 2."
    )
    nothing = replace(report(), changes=(), fidelity=None)
    assert "nothing was changed" in headline(nothing)
    assert headline(report(Status.EXHAUSTED)) == "It does not fit, after 2 attempts: x"
    assert headline(report(Status.FAILED)).startswith("The job failed")
    assert headline(report(Status.INTERRUPTED)).startswith("The run was interrupted")


def test_each_attempt_says_what_changed_and_that_what_it_saved_is_not_known_after_an_oom():
    text = Page(page(report(), Plots())).text
    assert "halve_micro_batch: micro_batch 16 -> 8, accumulation 1 -> 2 (same math)" in text
    assert "not known: the attempt before ended before its peak" in text
    assert "-per_device_train_batch_size: 16 # mine" in text


def predicted(plan: Plan, size: int) -> Predicted:
    return Predicted(
        plan=plan, allocated_bytes=size, reserved_bytes=size, expected_bytes=size, method="trace",
        terms={"weights": size - 10, "logits_and_loss": 10},
    )  # fmt: skip


def with_predictions(first: int, second: int, measured: int) -> FitReport:
    whole = report()
    one, two = whole.attempts
    return replace(
        whole,
        attempts=(
            replace(one, predicted=predicted(one.spec.plan, first), device_peak_bytes=1 << 30),
            replace(two, predicted=predicted(two.spec.plan, second), device_peak_bytes=measured),
        ),
    )


def test_predicted_peaks_are_beside_measured_ones_and_an_oom_has_no_difference():
    text = page(with_predictions(4 << 30, 2 << 30, (2 << 30) + (1 << 29)), Plots())
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert ["1", "peak allocated", "4.00 GiB", "1.00 GiB, then out of memory", ""] in rows
    assert ["2", "peak allocated", "2.00 GiB", "2.50 GiB", "+25.0%"] in rows
    assert ["2", "peak reserved", "2.00 GiB", "not measured", "not measured"] in rows
    assert "2.00 GiB on each GPU, predicted" in text
    assert ["logits and loss", "10 B"] in rows


def test_what_may_be_endless_is_cut_with_a_word_on_where_the_rest_is():
    whole = report()
    first = whole.attempts[0]
    finding = replace(first.verdict.evidence[0], text="x" * 10_000, kind=Kind.DEVICE_OOM)
    verdict = replace(first.verdict, evidence=(finding,) * 500)
    diff = "".join(f"+line {number}\n" for number in range(50_000))
    long = replace(whole, attempts=(replace(first, verdict=verdict),) * 200, config_diff=diff)
    text = page(long, Plots())
    assert f"... and {50_000 - DIFF_LINES} more lines, see fit-report.json" in text
    assert f"... and {500 - FINDINGS} more, see verdict.json" in text
    assert len(text) < 2_000_000


def test_text_is_masked_and_escaped_and_html_stays():
    assert escaped(f"<b> --token {TOKEN}") == "&lt;b&gt; --token ***"
    assert escaped(Markup("<b>")) == "<b>"
    assert element("a", "&", class_='"') == '<a class="&quot;">&amp;</a>'
