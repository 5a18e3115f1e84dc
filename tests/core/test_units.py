from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomguard.units import GIB, MIB, parse_size, show_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("24GiB", 24 * GIB),
        ("24G", 24 * GIB),
        ("24 gib", 24 * GIB),
        ("16GB", 16 * 10**9),
        ("1.5GiB", 3 * GIB // 2),
        ("800MiB", 800 * MIB),
        ("1048576", MIB),
        ("5 bytes", 5),
    ],
)
def test_sizes_are_read(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "24 potatoes", "1e9", "24GiB extra"])
def test_what_is_no_size_is_an_error_that_shows_one(text):
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@given(st.integers(1, 1 << 50))
def test_shown_sizes_read_back_within_their_rounding(size_bytes):
    shown = parse_size(show_bytes(size_bytes).replace(" ", ""))
    assert abs(shown - size_bytes) <= max(0.06 * size_bytes, 1)


@pytest.mark.parametrize("text", ["24", "1048575", "0.5"])
def test_a_number_that_lacks_its_unit_is_an_error(text):
    with pytest.raises(ValueError, match=r"unit|positive"):
        parse_size(text)


def test_shown_units():
    assert show_bytes(24 * GIB) == "24.00 GiB"
    assert show_bytes(800 * MIB) == "800.00 MiB"
    assert show_bytes(20) == "20 B"
