"""The sizes of images, from files of every kind that training data hold."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oomguard.dataset.image_size import size_of

HIGH, WIDE = 480, 640
APP = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF" + bytes(10)
TABLES = b"\xff\xc4" + struct.pack(">H", 5) + bytes(3)  # looks like a frame, and is none
FRAME = b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, HIGH, WIDE, 1) + bytes(3)
FILES = {
    "png": b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", WIDE, HIGH),
    "gif": b"GIF89a" + struct.pack("<HH", WIDE, HIGH),
    "bmp": b"BM" + bytes(16) + struct.pack("<ii", WIDE, -HIGH),
    "jpeg": b"\xff\xd8" + APP + TABLES + b"\xff" + FRAME,
    "webp-lossy": b"RIFF0000WEBPVP8 " + bytes(10) + struct.pack("<HH", WIDE, HIGH),
    "webp-lossless": b"RIFF0000WEBPVP8L" + bytes(4) + b"\x2f"
    + ((WIDE - 1) | (HIGH - 1) << 14).to_bytes(4, "little"),
    "webp-extended": b"RIFF0000WEBPVP8X" + bytes(8)
    + (WIDE - 1).to_bytes(3, "little") + (HIGH - 1).to_bytes(3, "little"),
}  # fmt: skip


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_height_and_width_stand_in_the_head(tmp_path, data):
    path = tmp_path / "image"
    path.write_bytes(data + bytes(64))
    assert size_of(path) == (HIGH, WIDE)


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_a_file_that_ends_early_has_no_size(tmp_path, data):
    path = tmp_path / "image"
    path.write_bytes(data[: len(data) // 2])
    assert size_of(path) is None


def test_what_is_no_file_has_none(tmp_path):
    assert size_of(tmp_path) is None
    assert size_of(tmp_path / "gone.png") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.sampled_from([*(d[:9] for d in FILES.values()), b""]).flatmap(
    lambda start: st.binary(max_size=80).map(lambda rest: start + rest)))  # fmt: skip
def test_no_file_breaks_it(tmp_path, data):
    path = tmp_path / "image"
    path.write_bytes(data)
    found = size_of(path)
    assert found is None or min(found) > 0
