"""Seeded order without state: hashes of numbers and names, permutations that are sorted hashes.

No generator is advanced, so the order of pack 10 million costs no more than that of pack 0, and nothing depends on numpy's
choice of algorithms: the same seed gives the same stage and the same epoch with any version, on any machine.
"""

import hashlib

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
_MASK = (1 << 64) - 1


def text_hash(seed: int, *names: str) -> int:
    """64 bits of names under a seed."""
    joined = "\0".join([str(seed), *names]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")


def mix64(values: U64, salt: int) -> U64:
    """Splitmix64 (Steele, Lea, Flood 2014) of each value, offset by a salt; a bijection of 64 bits for each salt."""
    x = values + np.uint64(salt & _MASK)
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(num: int, *, seed: int, name: str) -> npt.NDArray[np.int64]:
    """int64 [num]: a shuffle of 0..num-1; another one for each seed and name."""
    return shuffled(np.arange(num, dtype=np.int64), seed=seed, name=name)


def shuffled(values: npt.NDArray[np.int64], *, seed: int, name: str) -> npt.NDArray[np.int64]:
    """The values, all different, in an order of their hashes: what is there decides, not where it stood."""
    keys = mix64(values.astype(np.uint64), text_hash(seed, name))
    result: npt.NDArray[np.int64] = values[np.lexsort((values, keys))]
    return result
