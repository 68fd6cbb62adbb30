"""Pseudo-random orders that are never written down: each element is found by itself, in the same time."""

import hashlib

FEISTEL_ROUNDS = 4


def permuted(place: int, size: int, key: tuple[int, int]) -> int:
    """Element `place` of a pseudo-random permutation of range(size), without making the permutation.

    A Feistel network permutes the next power of four; walking along its cycle until the value is below
    `size` keeps it a permutation of exactly that range (Black & Rogaway 2002, "Ciphers with arbitrary
    finite domains").
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    value = place
    while True:
        left, right = value >> half_bits, value & mask
        for turn in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (keyed_hash(*key, turn + 1, right) & mask)
        value = left << half_bits | right
        if value < size:
            return value


def keyed_hash(seed: int, epoch: int, turn: int, value: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{epoch}/{turn}/{value}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
