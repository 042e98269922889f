"""Packs samples of different lengths into rows of one length, and shares rows out among devices."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from heapq import heapify, heapreplace


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of samples, row by row, so that no row is longer than `capacity`: the longest first, each into the
    fullest row that still has room (best fit decreasing: at most 11/9 of the fewest rows there could be).

    Args:
        lengths: of the samples, in positions.
        capacity: of a row.

    Raises:
        ValueError: a sample is longer than a row.
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (what is left, row), the smallest room first
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        length = lengths[number]
        if length > capacity:
            raise ValueError(f"a sample of {length} positions does not go into a row of {capacity}")
        place = bisect_left(rooms, (length, -1))
        if place == len(rooms):
            rows.append([number])
            insort(rooms, (capacity - length, len(rows) - 1))
        else:
            room, row = rooms.pop(place)
            rows[row].append(number)
            insort(rooms, (room - length, row))
    return [sorted(row) for row in rows]


def share(work: Sequence[float], devices: int) -> list[list[int]]:
    """Numbers of rows for each device, as many for each, so that the device with most work has little more than the
    others: the heaviest first, each to the device with the least so far.

    Args:
        work: of each row; as many as divide by `devices`.
        devices: how many.
    """
    each = len(work) // devices
    shares: list[list[int]] = [[] for _ in range(devices)]
    loads = [(0.0, device) for device in range(devices)]
    heapify(loads)
    for number in sorted(range(len(work)), key=lambda number: (-work[number], number)):
        load, device = loads[0]
        shares[device].append(number)
        full = len(shares[device]) == each
        heapreplace(loads, (float("inf") if full else load + work[number], device))
    return [sorted(mine) for mine in shares]
