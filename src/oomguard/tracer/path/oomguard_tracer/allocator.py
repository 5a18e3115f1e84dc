"""A model of PyTorch's CUDA caching allocator, for replaying a trace without a GPU.

Policy as documented in PyTorch's "CUDA semantics" notes and its allocator's source (one stream, no
`max_split_size_mb`, no garbage collection threshold). Sizes and addresses are in bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from .trace import ROUND_BYTES, MemoryEvent

SMALL_BYTES = 1 << 20  # requests up to this size share small segments
SMALL_SEGMENT_BYTES = 2 << 20
LARGE_SEGMENT_BYTES = 20 << 20
OWN_SEGMENT_BYTES = 10 << 20  # requests from this size on get a segment of their own
SEGMENT_ROUND_BYTES = 2 << 20
#: Far more than any card, and whole pages: every expandable segment has this much room to grow.
ADDRESS_SPACE_BYTES = 1_000_000 * LARGE_SEGMENT_BYTES


class OutOfMemory(Exception):  # noqa: N818  the term of the field
    """The replayed trace does not fit the capacity."""


class Block:
    """A piece of a segment, linked to its neighbours in the same segment."""

    __slots__ = ("address", "free", "mapped", "next", "pool", "previous", "size")

    def __init__(self, pool: Pool, address: int, size: int, *, mapped: bool = True) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.free = True
        self.mapped = mapped
        self.previous: Block | None = None
        self.next: Block | None = None


class Pool:
    """The free blocks of one kind of segment: best fit, then lowest address."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self._sorted: list[tuple[int, int]] = []
        self._blocks: dict[int, Block] = {}

    def add(self, block: Block) -> None:
        """Add a free block."""
        insort(self._sorted, (block.size, block.address))
        self._blocks[block.address] = block

    def remove(self, block: Block) -> None:
        """Remove a block."""
        del self._sorted[bisect_left(self._sorted, (block.size, block.address))]
        del self._blocks[block.address]

    def candidates(self, size: int) -> Iterable[Block]:
        """Return the free blocks of at least `size`, the best fit first."""
        for index in range(bisect_left(self._sorted, (size, -1)), len(self._sorted)):
            yield self._blocks[self._sorted[index][1]]

    def all(self) -> list[Block]:
        """List the free blocks, the smallest first."""
        return [self._blocks[address] for _, address in self._sorted]


class CachingAllocator:
    """Allocates and frees as CUDA's caching allocator would, up to a capacity if one is given."""

    def __init__(self, *, capacity_bytes: int | None = None, expandable: bool = False) -> None:
        self.capacity_bytes = capacity_bytes
        self.expandable = expandable
        self.allocated_bytes = self.peak_allocated_bytes = 0
        self.reserved_bytes = self.peak_reserved_bytes = 0
        self._small, self._large = Pool(small=True), Pool(small=False)
        # The driver puts each new segment below the last, which decides between equal blocks: no
        # document says so, published peaks show it (benchmarks/prediction/README.md).
        self._next_address = self._lowest_address = ADDRESS_SPACE_BYTES
        self._unmapped: dict[bool, list[Block]] = {True: [], False: []}

    def allocate(self, request_bytes: int) -> Block:
        """Return a block for `request_bytes`.

        Raises:
            OutOfMemory: if it does not fit even after the cached segments were released.
        """
        size = max(ROUND_BYTES, -(-request_bytes // ROUND_BYTES) * ROUND_BYTES)
        pool = self._small if size <= SMALL_BYTES else self._large
        block = self._find(pool, size) or self._grow(pool, size)
        if block is None:
            self._release_cached()
            block = self._grow(pool, size)
        if block is None:
            raise OutOfMemory(f"{size} bytes on top of {self.reserved_bytes} reserved")
        self._split(block, size)
        block.free = False
        self.allocated_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block

    def release(self, block: Block) -> None:
        """Return a block to its pool, merged with free neighbours."""
        self.allocated_bytes -= block.size
        block.free = True
        for other in (block.previous, block.next):
            if other is not None and other.free and other.mapped:
                block.pool.remove(other)
                _merge(block, other)
        block.pool.add(block)

    def _find(self, pool: Pool, size: int) -> Block | None:
        if self.expandable:
            found = _least_room_to_grow(pool.candidates(size))
        else:
            found = next(iter(pool.candidates(size)), None)
        if found is not None:
            pool.remove(found)
        return found

    def _split(self, block: Block, size: int) -> None:
        left = block.size - size
        fine = block.pool.small or self.expandable
        if left < ROUND_BYTES or not (fine or left > SMALL_BYTES):
            return
        rest = Block(block.pool, block.address + size, left)
        block.size = size
        _link(block, rest, block.next)
        block.pool.add(rest)

    def _grow(self, pool: Pool, size: int) -> Block | None:
        return self._expand(pool, size) if self.expandable else self._segment(pool, size)

    def _segment(self, pool: Pool, size: int) -> Block | None:
        if pool.small:
            segment = SMALL_SEGMENT_BYTES
        elif size < OWN_SEGMENT_BYTES:
            segment = LARGE_SEGMENT_BYTES
        else:
            segment = -(-size // SEGMENT_ROUND_BYTES) * SEGMENT_ROUND_BYTES
        if not self._reserve(segment):
            return None
        self._lowest_address -= segment
        return Block(pool, self._lowest_address, segment)

    def _reserve(self, size: int) -> bool:
        if self.capacity_bytes is not None and self.reserved_bytes + size > self.capacity_bytes:
            return False
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return True

    def _release_cached(self) -> None:
        for pool in (self._large, self._small):
            for block in pool.all():
                if self.expandable:
                    self._unmap(block)
                elif block.previous is None and block.next is None:
                    pool.remove(block)
                    self.reserved_bytes -= block.size

    # Expandable segments: one address range per pool, whose pages are mapped as needed.

    def _expand(self, pool: Pool, size: int) -> Block | None:
        block = self._room(pool, size)
        if not block.mapped:
            mapped = self._map(block, min(size, block.size))
            if mapped is None:
                return None
            block = mapped
        while block.size < size:
            after = block.next
            if after is None or after.mapped:
                raise AssertionError("a free block with room to grow is followed by unmapped pages")
            grown = self._map(after, min(size - block.size, after.size))
            if grown is None:
                return None
            block = grown
        pool.remove(block)
        return block

    def _room(self, pool: Pool, size: int) -> Block:
        """Find where `size` fits: unmapped pages, with a free block right before them or not."""
        for unmapped in sorted(self._unmapped[pool.small], key=lambda block: block.address):
            before = unmapped.previous
            start = before if before is not None and before.free else unmapped
            if _room_from(start, size):
                return start
        fresh = Block(pool, self._next_address, ADDRESS_SPACE_BYTES, mapped=False)
        self._next_address += ADDRESS_SPACE_BYTES
        self._unmapped[pool.small].append(fresh)
        return fresh

    def _map(self, block: Block, size: int) -> Block | None:
        """Map the first pages of an unmapped block; give the free block that then holds them."""
        page = SMALL_SEGMENT_BYTES if block.pool.small else LARGE_SEGMENT_BYTES
        size = min(-(-size // page) * page, block.size)
        if not self._reserve(size):
            return None
        self._unmapped[block.pool.small].remove(block)
        if size < block.size:
            rest = Block(block.pool, block.address + size, block.size - size, mapped=False)
            block.size = size
            _link(block, rest, block.next)
            self._unmapped[block.pool.small].append(rest)
        block.mapped = True
        for other in (block.previous, block.next):
            if other is not None and other.free and other.mapped:
                block.pool.remove(other)
                _merge(block, other)
        block.pool.add(block)
        return block

    def _unmap(self, block: Block) -> None:
        """Release the whole pages inside a free block."""
        page = SMALL_SEGMENT_BYTES if block.pool.small else LARGE_SEGMENT_BYTES
        start = -(-block.address // page) * page
        end = (block.address + block.size) // page * page
        if end <= start:
            return
        pool = block.pool
        pool.remove(block)
        head, tail = start - block.address, block.address + block.size - end
        hole = Block(pool, start, end - start, mapped=False)
        if tail:
            rest = Block(pool, end, tail)
            _link(block, rest, block.next)
            pool.add(rest)
        if head:
            block.size = head
            _link(block, hole, block.next)
            pool.add(block)
        else:
            _replace(block, hole)
        self.reserved_bytes -= end - start
        for other in (hole.previous, hole.next):
            if other is not None and not other.mapped:
                self._unmapped[pool.small].remove(other)
                _merge(hole, other)
        self._unmapped[pool.small].append(hole)


def replay(
    events: Iterable[MemoryEvent], *, capacity_bytes: int | None = None, expandable: bool = False
) -> CachingAllocator:
    """Replay a trace.

    Raises:
        OutOfMemory: if it does not fit `capacity_bytes`.
    """
    allocator = CachingAllocator(capacity_bytes=capacity_bytes, expandable=expandable)
    blocks: dict[int, Block] = {}
    for event in events:
        if event.size_bytes > 0:
            blocks[event.storage] = allocator.allocate(event.size_bytes)
        elif event.storage in blocks:
            allocator.release(blocks.pop(event.storage))
    return allocator


def fits(events: Iterable[MemoryEvent], capacity_bytes: int, *, expandable: bool = False) -> bool:
    """Return whether a trace completes within a capacity."""
    try:
        replay(events, capacity_bytes=capacity_bytes, expandable=expandable)
    except OutOfMemory:
        return False
    return True


def _least_room_to_grow(candidates: Iterable[Block]) -> Block | None:
    """Choose the best fit, where a block before unmapped pages counts with those pages."""
    best: Block | None = None
    for block in candidates:
        if best is None or _growable(block) < _growable(best):
            best = block
        else:
            break
    return best


def _growable(block: Block) -> int:
    after = block.next
    return block.size + (after.size if after is not None and not after.mapped else 0)


def _room_from(block: Block | None, size: int) -> bool:
    room = 0
    while block is not None and room < size and block.free:
        room += block.size
        block = block.next
    return room >= size


def _link(first: Block, second: Block, third: Block | None) -> None:
    first.next, second.previous = second, first
    second.next = third
    if third is not None:
        third.previous = second


def _replace(old: Block, new: Block) -> None:
    new.previous, new.next = old.previous, old.next
    if old.previous is not None:
        old.previous.next = new
    if old.next is not None:
        old.next.previous = new


def _merge(block: Block, other: Block) -> None:
    """Merge a neighbour in the same segment into `block`."""
    if other is block.previous:
        block.address, block.previous = other.address, other.previous
        if other.previous is not None:
            other.previous.next = block
    else:
        block.next = other.next
        if other.next is not None:
            other.next.previous = block
    block.size += other.size
