"""Plots of a fit-report as SVG, in the colours of the page. The only module that needs matplotlib.

`oomguard report --format html` imports it where matplotlib is installed, and nothing else does.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from oomguard.cli.markup import NOTHING, Markup, element, joined
from oomguard.cli.report_page import Plots
from oomguard.cli.report_text import result_text
from oomguard.evidence.verdict import Phase
from oomguard.process.limits import CapBy
from oomguard.run.events import Limits
from oomguard.run.report import FitReport
from oomguard.run.series import AttemptSeries, Stretch, Track, thinned
from oomguard.units import GIB, MIB, show_bytes

#: Colours of the page; a plot is drawn in a colour that stands for each, and then renamed.
_COLOURS = (
    *("ink", "soft", "line", "cap"),
    *("c0", "c1", "c2", "c3", "c4", "c5"),
    *("p0", "p1", "p2", "p3", "p4"),
)
_ATTEMPT_COLOURS, _STYLES = 6, ("solid", "dashed", "dotted")
#: Points of a plot together, attempts in it, plots of GPUs; the rest of a longer run is not drawn.
_POINTS, _ATTEMPTS, _DEVICES = 4000, 40, 16
#: A shorter share of the time is not shaded.
_NARROWEST = 1 / 300
_PHASES = {
    Phase.LAUNCH: ("loading", "p0"), Phase.LOAD: ("loading", "p0"),
    Phase.PREPROCESS: ("preprocessing", "p1"), Phase.BATCH: ("training", "p2"),
    Phase.FORWARD: ("training", "p2"), Phase.BACKWARD: ("training", "p2"),
    Phase.OPTIMIZER: ("training", "p2"), Phase.EVAL: ("evaluation", "p3"),
    Phase.SAVE: ("saving", "p4"),
}  # fmt: skip


def plots(report: FitReport, series: Sequence[AttemptSeries]) -> Plots:
    """Return the plots of a report."""
    series = series[-_ATTEMPTS:]
    devices = {track.device for one in series for track in one.tracks}
    cards = sorted(device for device in devices if device is not None)[:_DEVICES]
    hosts = [None] if None in devices else []
    drawn = [_memory(report, series, device) for device in (*cards, *hosts)]
    nothing = element("p", "No process of this run reported its memory.", class_="soft")
    return Plots(memory=joined(*drawn) or nothing, loss=_loss(series))


def _colour(name: str) -> str:
    return f"#0101{_COLOURS.index(name):02x}"


def _line(attempt: int) -> tuple[str, str]:
    """Return the colour and the line style of an attempt."""
    return f"c{(attempt - 1) % _ATTEMPT_COLOURS}", _STYLES[(attempt - 1) // _ATTEMPT_COLOURS % 3]


# --- Memory ---


def _memory(report: FitReport, series: Sequence[AttemptSeries], device: int | None) -> Markup:
    """Return the plot of a device; of several processes on it the one with the highest peak."""
    tracks = {
        one.attempt: max(found, key=lambda track: track.peak_bytes)
        for one in series
        if (found := [track for track in one.tracks if track.device == device])
    }
    cap_bytes, cap_name = _cap(report.limits, device, tracks.values())
    highest = max(cap_bytes or 0, *(track.peak_bytes for track in tracks.values()))
    unit, unit_name = (GIB, "GiB") if highest >= GIB else (MIB, "MiB")
    last = series[-1]
    shown = last.phases.get(tracks[last.attempt].pid, ()) if last.attempt in tracks else ()
    seconds = max((track.points[-1][0] for track in tracks.values()), default=0.0)
    stretches = list(_joined(shown, seconds * _NARROWEST))
    figure, axes = _figure("seconds since the attempt's first report", unit_name)
    for name, begin, end in stretches:
        axes.axvspan(begin, end, color=_colour(name), alpha=0.25, linewidth=0)
    for attempt, track in tracks.items():
        colour, style = _line(attempt)
        points = thinned(track.points, _POINTS // len(tracks), max)
        times, sizes = [at for at, _ in points], [size / unit for _, size in points]
        axes.plot(times, sizes, color=_colour(colour), linestyle=style, linewidth=1.5)
        axes.plot(times[-1:], sizes[-1:], color=_colour(colour), marker="o", markersize=3)
        for at, size in thinned(track.failed, 50, max):
            axes.plot([at], [size / unit], color=_colour(colour), marker="x", markersize=7)
    if cap_bytes:
        axes.axhline(cap_bytes / unit, color=_colour("cap"), linestyle="dashed", linewidth=1)
    axes.set_ylim(0, highest / unit * 1.08)
    name = "the host" if device is None else f"GPU {device}"
    svg = _svg(figure, f"m{'h' if device is None else device}", f"Memory of {name} over time")
    key = element("ul", *_key(report, tracks, cap_name, stretches), class_="key")
    caption = element("figcaption", _caption(report.limits, device, many=len(tracks) > 1))
    title = element("h3", name[0].upper() + name[1:])
    return element("figure", title, key, element("div", svg, class_="plot"), caption)


def _cap(limits: Limits, device: int | None, tracks: Iterable[Track]) -> tuple[int | None, str]:
    """Return the cap that is drawn, and what it is."""
    if device is None:  # one by a cgroup counts all processes, and one of them is drawn
        size = limits.host_memory_bytes if limits.host_memory_by == CapBy.RLIMIT else None
        return size, f"limit: {show_bytes(size)}" if size else ""
    if limits.gpu_memory_bytes:
        return limits.gpu_memory_bytes, f"limit: {show_bytes(limits.gpu_memory_bytes)}"
    sizes = [track.capacity_bytes for track in tracks if track.capacity_bytes]
    return (sizes[0], f"size of the GPU: {show_bytes(sizes[0])}") if sizes else (None, "")


def _joined(stretches: Sequence[Stretch], narrowest: float) -> Iterator[tuple[str, float, float]]:
    """Yield the colour, beginning and end of each shade; neighbours of one colour are one."""
    now: tuple[str, float, float] | None = None
    for one in stretches:
        colour = _PHASES.get(one.phase, ("", ""))[1]
        if now is not None and (now[0] == colour or one.end - one.begin < narrowest):
            now = (now[0], now[1], one.end)
            continue
        if now is not None and now[0]:
            yield now
        now = (colour, one.begin, one.end)
    if now is not None and now[0]:
        yield now


def _key(
    report: FitReport,
    tracks: dict[int, Track],
    cap: str,
    stretches: Sequence[tuple[str, float, float]],
) -> Iterator[Markup]:
    ends = {one.number: result_text(one) for one in report.attempts}
    for attempt in tracks:
        colour, style = _line(attempt)
        swatch = element("i", style=f"color: var(--{colour}); border-top-style: {style}")
        yield element("li", swatch, f"attempt {attempt}: {ends.get(attempt, '')}")
    if any(track.failed for track in tracks.values()):
        yield element("li", "\N{MULTIPLICATION SIGN} memory held when an allocation failed")
    if cap:
        swatch = element("i", style="color: var(--cap); border-top-style: dashed")
        yield element("li", swatch, cap)
    names = {colour: name for name, colour in _PHASES.values()}
    for colour in dict.fromkeys(colour for colour, _, _ in stretches):
        swatch = element("i", class_="shade", style=f"background: var(--{colour})")
        yield element("li", swatch, names[colour])


def _caption(limits: Limits, device: int | None, *, many: bool) -> str:
    if device is not None:
        what = "Reserved by PyTorch's allocator"
    elif limits.host_memory_bytes and limits.host_memory_by == CapBy.RLIMIT:
        what = "Private data, which the limit counts for each process"
    elif limits.host_memory_bytes:
        size = show_bytes(limits.host_memory_bytes)
        what = f"Resident set; the limit of {size} counts all processes of the job together"
    else:
        what = "Resident set"
    shades = "the last attempt" if many else "the attempt"
    return (
        f"{what}; of several processes, the one with the highest peak. Shades are phases of "
        f"{shades}. Of a long run the highest point of each interval is drawn."
    )


# --- Loss ---


def _loss(series: Sequence[AttemptSeries]) -> Markup:
    """Return the plot of the losses that were printed, nothing where none were."""
    printed = [one for one in series if one.losses]
    if not printed:
        return NOTHING
    unit = printed[-1].loss_unit
    same = [one for one in printed if one.loss_unit == unit]
    figure, axes = _figure(unit, "loss")
    key = []
    for one in same:
        colour, style = _line(one.attempt)
        points = thinned(one.losses, _POINTS // len(same), lambda a, b: (a + b) / 2)
        axes.plot(
            [at for at, _ in points], [loss for _, loss in points], color=_colour(colour),
            linestyle=style, linewidth=1.5, marker="o" if len(points) < 50 else "",  # noqa: PLR2004
            markersize=3,
        )  # fmt: skip
        swatch = element("i", style=f"color: var(--{colour}); border-top-style: {style}")
        key.append(element("li", swatch, f"attempt {one.attempt}"))
    svg = _svg(figure, "loss", f"Loss by {unit}")
    caption = "As the job printed it. Of a long run the mean of each interval is drawn."
    return element(
        "figure",
        element("ul", *key, class_="key"),
        element("div", svg, class_="plot"),
        element("figcaption", caption),
    )


# --- SVG ---


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.6, 3.1), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_colour("line"))
    axes.tick_params(color=_colour("line"), labelcolor=_colour("soft"), labelsize=9)
    axes.grid(axis="y", color=_colour("line"), linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, color=_colour("soft"), fontsize=9)
    axes.set_ylabel(y, color=_colour("soft"), fontsize=9)
    axes.margins(x=0.01)
    return figure, axes


def _svg(figure: Figure, name: str, title: str) -> Markup:
    """Return a figure as an element of the page: text as text, the same for the same data."""
    out = io.StringIO()
    without = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(out, metadata=without)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', f"{name}-", svg)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"#0101([0-9a-f]{2})", lambda found: f"var(--{_COLOURS[int(found[1], 16)]})", svg)
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    return Markup(re.sub(r"\s*\n\s*", " ", svg))
