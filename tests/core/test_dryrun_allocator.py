"""The allocator's documented policy, on traces made by hand; no GPU was to be had to record any."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import oomguard.tracer

sys.path.append(str(oomguard.tracer.PATH))
from oomguard_tracer.allocator import CachingAllocator, OutOfMemory, fits, replay
from oomguard_tracer.trace import MemoryEvent

KIB, MIB = 1 << 10, 1 << 20


def trace(*sizes: int) -> list[MemoryEvent]:
    """Allocate positive sizes in order; a negative number frees the storage of that index."""
    events, made = [], {}
    for size in sizes:
        if size > 0:
            made[len(made)] = size
            events.append(MemoryEvent(len(made) - 1, size, None))
        else:
            events.append(MemoryEvent(-size - 1, -made[-size - 1], None))
    return events


@pytest.mark.parametrize(
    ("request_bytes", "reserved_bytes"),
    [
        (1, 2 * MIB),  # small requests share 2 MiB
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),  # up to 10 MiB they share 20 MiB
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),  # from there on, a segment of their own in steps of 2 MiB
        (11 * MIB + 1, 12 * MIB),
    ],
)
def test_a_first_request_takes_its_kind_of_segment(request_bytes, reserved_bytes):
    assert replay(trace(request_bytes)).peak_reserved_bytes == reserved_bytes


def test_requests_are_rounded_up_to_512_bytes():
    assert replay(trace(1, 513)).peak_allocated_bytes == 512 + 1024


def test_small_requests_share_a_segment_and_the_1025th_kibibyte_pair_opens_another():
    assert replay(trace(*[MIB] * 2)).peak_reserved_bytes == 2 * MIB
    assert replay(trace(*[MIB] * 3)).peak_reserved_bytes == 4 * MIB


def test_a_remainder_of_at_most_1_mib_of_a_large_block_is_not_split_off():
    allocator = replay(trace(20 * MIB, -1, 19 * MIB))
    assert allocator.allocated_bytes == 20 * MIB
    allocator = replay(trace(20 * MIB, -1, 19 * MIB - 512))
    assert allocator.allocated_bytes == 19 * MIB - 512


def test_the_smallest_free_block_that_is_large_enough_is_taken():
    events = trace(64 * MIB, 32 * MIB, 48 * MIB, -1, -2, -3, 32 * MIB, 64 * MIB, 48 * MIB)
    assert replay(events).peak_reserved_bytes == (64 + 32 + 48) * MIB


def test_of_equal_free_blocks_the_one_of_the_latest_segment_is_taken():
    allocator = CachingAllocator()
    blocks = [allocator.allocate(32 * MIB) for _ in range(3)]
    for block in blocks:
        allocator.release(block)
    assert allocator.allocate(32 * MIB) is blocks[2]
    assert allocator.allocate(32 * MIB) is blocks[1]


def test_free_neighbours_of_one_segment_are_merged():
    events = trace(8 * MIB, 8 * MIB, -1, -2, 18 * MIB)
    assert replay(events).peak_reserved_bytes == 20 * MIB


def test_blocks_of_different_segments_are_never_merged():
    events = trace(10 * MIB, 10 * MIB, -1, -2, 20 * MIB)
    assert replay(events).peak_reserved_bytes == 40 * MIB


def test_expandable_segments_grow_in_place_where_others_fragment():
    events = trace(10 * MIB, 10 * MIB, -1, -2, 20 * MIB)
    assert replay(events, expandable=True).peak_reserved_bytes == 20 * MIB


def test_expandable_segments_are_mapped_in_pages_of_20_mib_and_2_mib():
    assert replay(trace(21 * MIB), expandable=True).peak_reserved_bytes == 40 * MIB
    assert replay(trace(KIB), expandable=True).peak_reserved_bytes == 2 * MIB


def test_at_the_capacity_cached_segments_are_released_and_the_request_is_tried_again():
    events = trace(30 * MIB, 30 * MIB, -1, -2, 50 * MIB)
    allocator = replay(events, capacity_bytes=60 * MIB)
    assert allocator.peak_reserved_bytes == 60 * MIB
    assert allocator.reserved_bytes == 50 * MIB


def test_a_segment_that_is_still_used_in_part_is_not_released():
    events = trace(15 * MIB, 3 * MIB, 3 * MIB, -2, 20 * MIB)
    with pytest.raises(OutOfMemory):
        replay(events, capacity_bytes=55 * MIB)
    assert fits(events, 56 * MIB)


def test_expandable_segments_give_back_whole_pages_in_the_middle():
    events = trace(40 * MIB, 40 * MIB, 20 * MIB, -2, 60 * MIB)
    assert not fits(events, 119 * MIB, expandable=True)
    assert fits(events, 120 * MIB, expandable=True)


SIZES = st.lists(st.integers(1, 64 * MIB), min_size=1, max_size=60)


def shuffled(sizes: list[int], seed: int) -> list[MemoryEvent]:
    """Allocate every size, and free in a random order on the way."""
    chance = random.Random(seed)
    alive: list[MemoryEvent] = []
    events: list[MemoryEvent] = []
    for number, size in enumerate(sizes):
        alive.append(MemoryEvent(number, size, None))
        events.append(alive[-1])
        while alive and chance.random() < 0.4:
            gone = alive.pop(chance.randrange(len(alive)))
            events.append(gone._replace(size_bytes=-gone.size_bytes))
    return events


@given(sizes=SIZES, seed=st.integers(0, 1000), expandable=st.booleans())
def test_what_is_reserved_holds_what_is_allocated_and_never_overlaps(sizes, seed, expandable):
    allocator = CachingAllocator(expandable=expandable)
    blocks = {}
    for event in shuffled(sizes, seed):
        if event.size_bytes > 0:
            blocks[event.storage] = allocator.allocate(event.size_bytes)
        else:
            allocator.release(blocks.pop(event.storage))
        spans = sorted((block.address, block.address + block.size) for block in blocks.values())
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert sum(block.size for block in blocks.values()) == allocator.allocated_bytes
        assert allocator.allocated_bytes <= allocator.reserved_bytes


@given(sizes=SIZES, seed=st.integers(0, 1000), expandable=st.booleans())
def test_a_trace_fits_what_it_reserves_without_a_limit(sizes, seed, expandable):
    events = shuffled(sizes, seed)
    free = replay(events, expandable=expandable)
    assert fits(events, free.peak_reserved_bytes, expandable=expandable)
    assert not fits(events, free.peak_allocated_bytes - 512, expandable=expandable)


def test_a_trace_of_an_epoch_is_replayed_within_its_events():
    events = [MemoryEvent(n, MIB, None) for n in range(100)] + [MemoryEvent(0, -MIB, None)] * 2
    assert replay(events).allocated_bytes == 99 * MIB
