"""Small systems of linear equations, without a library for them."""

from __future__ import annotations

from collections.abc import Sequence


def solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Solve matrix x unknowns = right; the matrix is symmetric and positive definite.

    Gauss's elimination, which needs no pivots there. Shapes: n rows of n, and n.
    """
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for index, pivot in enumerate(rows):
        for below in rows[index + 1 :]:
            factor = below[index] / pivot[index]
            for column in range(index, len(below)):
                below[column] -= factor * pivot[column]
    unknowns = [0.0] * len(rows)
    for index in reversed(range(len(rows))):
        row = rows[index]
        rest = sum(row[i] * unknowns[i] for i in range(index + 1, len(rows)))
        unknowns[index] = (row[-1] - rest) / row[index]
    return unknowns
