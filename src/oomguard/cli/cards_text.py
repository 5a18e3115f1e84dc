"""The table of GPUs that `plan` prints, and its document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from oomguard.cli.output import echo, secho
from oomguard.cli.plan_cards import COUNTS, CardTable
from oomguard.cli.plan_table import missing_lines
from oomguard.cli.plan_text import COSTS, counted, show_plan
from oomguard.estimate.combine import is_sharded
from oomguard.predict.card_answers import Answer, CardAnswer
from oomguard.predict.forecast import Fit
from oomguard.units import show_bytes

_COLOURS = {
    Answer.FITS: "green",
    Answer.WITH_CHANGES: "green",
    Answer.UNSURE: "yellow",
    Answer.NO: "red",
}
_WIDTH = 72


def print_cards(table: CardTable, *, verbose: bool = False) -> None:
    """Print which GPUs the job fits on; `verbose` gives each a line of its own, with its peak."""
    job, model = table.planned.prepared.job, table.planned.model
    asked = table.planned.forecast.asked.plan
    echo(f"{model.name} ({model.source})")
    echo(f"{job.framework}, global batch {_batches(table.global_batches)}")
    echo(f"trained: {table.planned.trained(asked)}")
    echo(f"requested config: {show_plan(asked)}")
    echo()
    _smallest(table)
    for line in missing_lines(table.planned):
        secho(line, fg="yellow")
    for counts, answers in _sections(table.answers, merge=not verbose):
        echo()
        each = 1 < len(counts) == counts[-1] - counts[0] + 1
        number = f"{counts[0]} to {counts[-1]}" if each else ", ".join(map(str, counts))
        secho(f"On {number} GPU{'' if number == '1' else 's'}:", bold=True)
        _section(answers, verbose=verbose)
    echo()
    for note in notes(table):
        echo(f"note: {note}")


def _batches(sizes: Mapping[int, int]) -> str:
    """Return the global batches, of more than four numbers of GPUs only the first and the last."""
    shown = [f"{size} on {counted(gpus, 'GPU')}" for gpus, size in sizes.items()]
    return ", ".join(shown) if len(shown) <= len(COUNTS) else f"{shown[0]} to {shown[-1]}"


def _sections(
    answers: Iterable[CardAnswer], *, merge: bool
) -> Iterator[tuple[list[int], list[CardAnswer]]]:
    """Yield the answers by number of GPUs; neighbours with the same answers are one section."""
    counts: list[int] = []
    shown: list[CardAnswer] = []
    for gpus, grouped in groupby(answers, key=lambda one: one.gpus):
        here = list(grouped)
        if counts and not (merge and list(map(_outcome, here)) == list(map(_outcome, shown))):
            yield counts, shown
            counts = []
        if not counts:
            shown = here
        counts.append(gpus)
    if counts:
        yield counts, shown


def _outcome(one: CardAnswer) -> tuple[object, ...]:
    return one.answer, one.fit.path if one.fit else (), one.because


def _smallest(table: CardTable) -> None:
    least, as_requested = table.smallest, table.smallest_as_requested
    if least is None:
        most = max(table.global_batches)
        number = f"up to {most} of these GPUs" if most > 1 else "any of these GPUs"
        secho(f"It is not certain to fit on {number}.", bold=True)
        return
    secho(f"The smallest that fits: {_named(table, least)}.", fg="green", bold=True)
    if as_requested is None:
        secho("As requested it is not certain to fit on any of them.", bold=True)
    elif least is not as_requested:
        secho(f"The smallest that fits as requested: {_named(table, as_requested)}.", bold=True)
    cheapest = table.cheapest
    if cheapest is not None:
        price = f"{_price(table, cheapest):g} an hour"
        text = f"{cheapest.gpus} x {cheapest.card} for {price} {_usable(cheapest)}"
        secho(f"The cheapest that fits: {text}.", bold=True)


def _named(table: CardTable, one: CardAnswer) -> str:
    alike = (
        other.card
        for other in table.answers
        if (other.gpus, other.capacity_bytes) == (one.gpus, one.capacity_bytes)
        and other.answer is one.answer
    )
    return f"{one.gpus} x {' or '.join(alike)} {_usable(one)}"


def _usable(one: CardAnswer) -> str:
    changed = f", {_changes(one.fit)}" if one.fit else ""
    return f"({show_bytes(one.capacity_bytes)} usable){changed}"


def _price(table: CardTable, one: CardAnswer) -> float | None:
    """Return what all GPUs of an answer cost for an hour."""
    price = table.prices.get(one.card)
    return None if price is None else round(one.gpus * price, 6)


def _section(answers: Sequence[CardAnswer], *, verbose: bool) -> None:
    """Print the answers for one number of GPUs; neighbours with the same answer share a line."""
    if verbose:
        for one in answers:
            low, high = (show_bytes(x) for x in (one.estimate.low_bytes, one.estimate.high_bytes))
            peak = show_bytes(one.estimate.expected_bytes)
            needs = f"{peak} expected ({low} to {high}, {one.estimate.method})"
            line = f"  {one.card} ({show_bytes(one.capacity_bytes)}) {_how(one)}: {needs}"
            secho(line, fg=_COLOURS[one.answer])
        return
    for _, alike in groupby(answers, key=_outcome):
        group = list(alike)
        methods = " or ".join(dict.fromkeys(one.estimate.method for one in group))
        line = f"  {_sizes(group)}: {_how(group[0])} ({methods})"
        secho(line, fg=_COLOURS[group[0].answer])
        if len(answers) > 1:
            echo(f"      {_shortened([one.card for one in group])}")


def _shortened(names: Sequence[str]) -> str:
    """Return as many names as a line holds, and how many more there are."""
    shown = len(names)
    while shown > 1 and len(", ".join(names[:shown])) > _WIDTH:
        shown -= 1
    more = f" and {len(names) - shown} more" if shown < len(names) else ""
    return ", ".join(names[:shown]) + more


def _sizes(group: Sequence[CardAnswer]) -> str:
    ends = dict.fromkeys(show_bytes(one.capacity_bytes) for one in (group[0], group[-1]))
    return " to ".join(ends)


def _how(one: CardAnswer) -> str:
    """Return the answer in words."""
    if one.answer is Answer.FITS:
        return "fits as requested"
    if one.answer is Answer.NO:
        return "does not fit"
    if one.fit is None:
        return f"unsure, because {one.because}"
    return f"fits {_changes(one.fit)}"


def _changes(fit: Fit) -> str:
    """Return the strategies that make it fit, with their cost."""
    times = Counter(fit.path)
    steps = ", ".join(f"{name} x {n}" if n > 1 else name for name, n in times.items())
    host = show_bytes(fit.estimate.host_bytes)
    needed = f", {host} of host memory" if fit.plan.offload else ""
    return f"with {steps} [{COSTS[fit.fidelity]}{needed}]"


def notes(table: CardTable) -> Iterator[str]:
    """Yield what qualifies the answers."""
    yield (
        f"changes up to {COSTS[table.allow]} were tried; --verbose shows the peak on each GPU, "
        "--gpu NAME the whole ladder"
    )
    if len(table.global_batches) > 1:
        asked = table.planned.forecast.asked.plan
        yield "the config sets the samples of each GPU, so more GPUs make the global batch larger"
        if not is_sharded(asked):
            yield (
                "each GPU holds the whole model and its own micro batch, however many there are, "
                "unless a strategy shards it (switch_to_zero2, switch_to_zero3)"
            )
    if table.prices:
        yield "prices are for an hour and not for the run: a slower GPU takes longer"
        unpriced = {one.card for one in table.answers if one.is_fit} - table.prices.keys()
        if unpriced:
            yield f"{counted(len(unpriced), 'GPU')} on which it fits: no price was stated"
    yield from table.planned.notes


def cards_document(table: CardTable) -> dict[str, object]:
    """Return the table as `--json` prints it."""
    planned = table.planned
    named = {
        "smallest": table.smallest,
        "smallest_as_requested": table.smallest_as_requested,
        "cheapest": table.cheapest,
    }
    return {
        "framework": planned.prepared.job.framework,
        "model": planned.model.name,
        "model_source": planned.model.source,
        "method": planned.method,
        "unmodelled": planned.unmodelled,
        "rejected": planned.rejected,
        "trained": planned.trained(planned.forecast.asked.plan),
        "asked": planned.forecast.asked.plan,
        "allow": table.allow,
        "global_batches": {str(gpus): size for gpus, size in table.global_batches.items()},
        "cards": [_row(table, one) for one in table.answers],
        **{name: _row(table, one) if one else None for name, one in named.items()},
        "notes": list(notes(table)),
        "seconds": table.seconds,
        "answer_seconds": table.answer_seconds,
    }


def _row(table: CardTable, one: CardAnswer) -> dict[str, object]:
    return {
        "card": one.card,
        "gpus": one.gpus,
        "capacity_bytes": one.capacity_bytes,
        "answer": one.answer,
        "strategies": list(one.fit.path) if one.fit else [],
        "fidelity": one.fit.fidelity if one.fit else None,
        "plan": one.fit.plan if one.fit else one.asked.plan,
        "asked_fits": one.asked.fits,
        "estimate": one.estimate,
        "method": one.estimate.method,
        "because": one.because,
        "price": _price(table, one),
    }
