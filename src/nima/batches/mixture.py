"""A mixture: orders of several sources, dealt out so that each has its share at every moment."""

import hashlib
import heapq
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from nima.batches.order import Order, Row

MAX_PERIOD = 100_000
"""Units after which the sources take turns as before; a share that needs more is rounded to its parts."""


class Mixture:
    """Units of several sources, so that their tokens have the given shares. Each has epochs of its own.

    After any number of units each source has had its share of them to less than one unit.
    """

    def __init__(self, orders: Mapping[str, Order], shares: Mapping[str, float]) -> None:
        self.names = list(orders)
        self.orders = list(orders.values())
        # `str` gives a float's shortest decimal, so that 0.7 and 0.3 are 7 : 3.
        needed = [Fraction(str(shares[name])) / order.tokens_per_unit for name, order in orders.items()]
        self.parts = whole_parts(needed, MAX_PERIOD)
        self.source_of, self.turn_of = turns(self.parts)
        self.units_per_epoch = sum(order.units_per_epoch for order in self.orders)
        self.num_tokens = sum(order.num_tokens for order in self.orders)
        self.tokens_per_unit = self.mean([order.tokens_per_unit for order in self.orders])
        self.slots_per_unit = self.mean([order.slots_per_unit for order in self.orders])

    def mean(self, values: Sequence[Fraction]) -> Fraction:
        total = sum((value * part for value, part in zip(values, self.parts, strict=True)), Fraction(0))
        return total / sum(self.parts)

    def rows(self, unit: int) -> Sequence[Row]:
        source, turn = self.turn(unit)
        return self.orders[source].rows(turn)

    def turn(self, unit: int) -> tuple[int, int]:
        """Which source a unit comes from, and which of that source's units it is."""
        period, place = divmod(unit, len(self.source_of))
        source = int(self.source_of[place])
        return source, period * self.parts[source] + int(self.turn_of[place])

    def counts(self, num_units: int) -> list[int]:
        """How many of the first units came from each source."""
        periods, rest = divmod(num_units, len(self.source_of))
        found = np.bincount(self.source_of[:rest], minlength=len(self.parts)).tolist()
        return [periods * part + more for part, more in zip(self.parts, found, strict=True)]

    def epochs(self, num_units: int) -> dict[str, float]:
        """Passes over each source."""
        counts = self.counts(num_units)
        rows = zip(self.names, self.orders, counts, strict=True)
        return {name: count / order.units_per_epoch for name, order, count in rows}


def whole_parts(shares: Sequence[Fraction], max_total: int) -> list[int]:
    """Positive shares as whole numbers: exact if their total is `max_total` at most, else rounded to that."""
    common = math.lcm(*(share.denominator for share in shares))
    parts = [int(share * common) for share in shares]
    divisor = math.gcd(*parts)
    if sum(parts) <= max_total * divisor:
        return [part // divisor for part in parts]
    return [max(1, round(max_total * share / sum(shares))) for share in shares]


def turns(parts: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """One period: the source of each of its sum(parts) places, and how often that source came before.

    Turn t of a source with the share s must fall between t/s and (t + 1)/s, for then it is never a whole
    turn ahead or behind. Of the turns that have begun the one that must end first comes next, which keeps
    all of them (Baruah et al. 1996, "Proportionate progress", with one processor).
    """
    period = sum(parts)
    coming = sorted(
        (turn * period // part, -(-(turn + 1) * period // part), source, turn)
        for source, part in enumerate(parts)
        for turn in range(part)
    )
    begun: list[tuple[int, int, int]] = []
    found = []
    waiting = iter(coming)
    following = next(waiting, None)
    for place in range(period):
        while following is not None and following[0] <= place:
            heapq.heappush(begun, following[1:])
            following = next(waiting, None)
        found.append(heapq.heappop(begun))
    _, sources, counts = np.array(found, dtype=np.int32).T
    return sources, counts


def seed_of(seed: int, source: str) -> int:
    """A source's own seed: sources of equal size, such as translations, are not visited in step."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{source}".encode(), digest_size=4).digest(), "little")
