"""Duplicates: exact copies by a folded hash, near copies by MinHash over word shingles (Broder 1997), and what an evaluation set shares.

In: texts. Out: hashes, signatures, and clusters of places. A document costs about 0.6 kB here, whatever its length.
One real row: `Print(folded="9c1b...", signature=b"...512 bytes...")`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from docward.records import text_hash

if TYPE_CHECKING:
    import numpy as np

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")  # Chinese and Japanese have no spaces: a character is a word
SHINGLE = 5  # words; what Broder's later followers use for documents
PERMUTATIONS = 128
BAND, NARROW_BAND = 8, 4  # values in a band. Of 8: a pair at Jaccard 0.8 meets in a band with probability 0.95, at 0.6 with 0.24; of 4: at 0.6 with 0.99
REACH = 64  # places in a bucket over which texts are compared: templates that share most words fill buckets with what is not near
WINDOW = 13  # words in a row that an evaluation set must not share (Brown et al. 2020, appendix C)


@dataclass(frozen=True, slots=True)
class Print:
    """A text's fingerprints: `folded` is the same for texts that differ in case and white space only, `signature` is 128 uint32 MinHash values."""

    folded: str
    signature: bytes


def words_of(text: str) -> list[str]:
    """The words of a text, lower-cased; a Chinese or Japanese character counts as one."""
    return WORD.findall(text.lower())


def fingerprint(text: str) -> Print:
    """Fingerprint a text; the signature estimates the Jaccard similarity of word 5-grams."""
    import numpy as np
    import xxhash
    from datasketch import MinHash

    folded = " ".join(text.lower().split())
    words = words_of(text) or [folded]  # a text of signs only is like no other
    shingles = (" ".join(gram).encode() for gram in _grams(words, SHINGLE))
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=xxhash.xxh32_intdigest)
    while part := list(islice(shingles, 4096)):  # a long text's at once would take 150 times its memory
        sketch.update_batch(part)
    return Print(text_hash(folded), sketch.hashvalues.astype(np.uint32).tobytes())


def _grams(words: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    if 0 < len(words) < size:
        yield words
    for place in range(len(words) - size + 1):
        yield words[place : place + size]


def near_pairs(signatures: np.ndarray, *, threshold: float) -> Iterator[tuple[int, int]]:
    """Give pairs of places whose estimated Jaccard similarity is at least `threshold`: not all pairs, but enough to join all that are near.

    Args:
        signatures: (documents, 128) uint32.
        threshold: from 0 to 1.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(signatures)
    joined = np.arange(count)
    width = BAND if threshold >= 0.8 else NARROW_BAND
    for band in range(0, PERMUTATIONS if count > 1 else 0, width):
        keys = np.ascontiguousarray(signatures[:, band : band + width]).view(np.dtype((np.void, 4 * width))).ravel()
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        bucket = np.cumsum(np.concatenate(([True], ~same)))
        for step in range(1, REACH + 1):
            meet = bucket[step:] == bucket[:-step]
            if not meet.any():
                break
            apart = np.flatnonzero(meet & (joined[order[step:]] != joined[order[:-step]]))
            left, right = order[apart], order[apart + step]
            near = _similarity(signatures, left, right) >= threshold
            left, right = left[near], right[near]
            yield from zip(left.tolist(), right.tolist(), strict=True)
            links = coo_array((np.ones(len(left)), (joined[left], joined[right])), shape=(count, count))
            joined = connected_components(links, directed=False)[1][joined] if len(left) else joined


def _similarity(signatures: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    import numpy as np

    parts = [slice(first, first + 4096) for first in range(0, len(left), 4096)]
    return np.concatenate([np.empty(0), *((signatures[left[part]] == signatures[right[part]]).mean(1) for part in parts)])


def clusters(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Join places by pairs; each place gets the lowest place of its cluster."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(count, count))
    lowest: dict[int, int] = {}
    return [lowest.setdefault(label, place) for place, label in enumerate(connected_components(graph, directed=False)[1].tolist())] if count else []


def windows(text: str) -> set[int]:
    """64-bit hashes of every 13 words in a row; of the whole text where it is shorter."""
    import xxhash

    return {xxhash.xxh64_intdigest(" ".join(gram).encode()) for gram in _grams(words_of(text), WINDOW)}
