"""What earlier measurements say of later predictions: a ratio for each term."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.estimate.correct import (
    LEAST,
    MOST,
    UNCORRECTED,
    Measured,
    Ratios,
    corrected,
    learnt,
)
from oomguard.estimate.linear import solved
from oomguard.estimate.memory import Term, allocated
from oomguard.units import GIB, MIB

#: (activations, logits, quantization temporaries) in GiB of four plans of one job.
PLANS = ((6.0, 4.0, 0.2), (3.0, 2.0, 0.2), (6.0, 1.0, 0.5), (1.0, 4.0, 0.0))


def terms_of(activations: float, logits: float, temporaries: float) -> dict[Term, int]:
    return {
        Term.WEIGHTS: 15 * GIB,
        Term.ADAPTER: 80 * MIB,
        Term.ACTIVATIONS: int(activations * GIB),
        Term.LOGITS_AND_LOSS: int(logits * GIB),
        Term.QUANTIZATION_TEMPORARIES: int(temporaries * GIB),
        Term.ALLOCATOR_SLACK: 1 * GIB,
        Term.CUDA_CONTEXT: 450 * MIB,
    }


def measured(terms: dict[Term, int], truth: Ratios) -> Measured:
    """Return what a device would have shown if the truth were so far off."""
    real = corrected(terms, truth)
    inside = allocated(real)
    return Measured(
        terms=terms,
        allocated_bytes=inside,
        reserved_bytes=inside + real[Term.ALLOCATOR_SLACK],
        loaded_bytes=real[Term.WEIGHTS] + real[Term.ADAPTER],
        context_bytes=real[Term.CUDA_CONTEXT],
    )


def test_nothing_measured_corrects_nothing():
    assert learnt(()) == UNCORRECTED
    assert corrected(terms_of(1, 1, 1), UNCORRECTED) == terms_of(1, 1, 1)


def test_several_plans_tell_the_terms_apart():
    truth = {Term.ACTIVATIONS: 1.1, Term.LOGITS_AND_LOSS: 0.8, Term.CUDA_CONTEXT: 1.3}
    runs = [measured(terms_of(*plan), Ratios(factors=truth)) for plan in PLANS]
    found = learnt(runs)
    assert found.runs == 4
    assert found.factors[Term.ACTIVATIONS] == pytest.approx(1.1, abs=0.02)
    assert found.factors[Term.LOGITS_AND_LOSS] == pytest.approx(0.8, abs=0.02)
    assert found.factors[Term.CUDA_CONTEXT] == pytest.approx(1.3, abs=0.01)
    assert found.factors[Term.WEIGHTS] == pytest.approx(1.0, abs=1e-6)
    unseen = terms_of(2, 6, 0.3)
    real = allocated(corrected(unseen, Ratios(factors=truth)))
    assert allocated(corrected(unseen, found)) == pytest.approx(real, rel=0.01)


def test_weights_that_are_wider_than_predicted_are_seen_by_themselves():
    wide = Ratios(factors={Term.WEIGHTS: 1.5, Term.ADAPTER: 1.5})
    found = learnt([measured(terms_of(6, 4, 0.2), wide)])
    assert found.factors[Term.WEIGHTS] == pytest.approx(1.5)
    assert found.factors[Term.ACTIVATIONS] == pytest.approx(1.0, abs=1e-3)


def test_what_was_loaded_says_nothing_of_weights_where_more_is_loaded():
    terms = terms_of(6, 4, 0.2) | {Term.MEDIA_TOWERS: 2 * GIB}
    found = learnt([measured(terms, UNCORRECTED)])
    assert found.factors[Term.WEIGHTS] == pytest.approx(1.0, abs=1e-3)


factors = st.floats(0.8, 1.25)
sizes = st.tuples(st.floats(0.5, 8), st.floats(0.1, 8), st.floats(0, 2))


@given(st.lists(st.tuples(sizes, factors, factors), min_size=1, max_size=5))
def test_ratios_stay_within_bounds_and_never_worsen_a_job_that_was_measured(runs):
    lessons = [
        measured(terms_of(*plan), Ratios(factors={Term.ACTIVATIONS: a, Term.LOGITS_AND_LOSS: b}))
        for plan, a, b in runs
    ]
    found = learnt(lessons)
    assert all(LEAST <= factor <= MOST for factor in found.factors.values())
    misses = [
        sum(
            ((allocated(corrected(one.terms, ratios)) - one.allocated_bytes) / one.allocated_bytes)
            ** 2
            for one in lessons
        )
        for ratios in (UNCORRECTED, found)
    ]
    assert misses[1] <= misses[0] + 1e-6


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=6))
def test_linear_equations_are_solved(rows):
    unknowns = [1.0, -2.0, 0.5]
    matrix = [[sum(row[i] * row[j] for row in rows) + (i == j) for j in range(3)] for i in range(3)]
    right = [sum(a * x for a, x in zip(line, unknowns, strict=True)) for line in matrix]
    assert solved(matrix, right) == pytest.approx(unknowns, abs=1e-6)
