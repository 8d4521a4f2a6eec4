"""Texts by Unicode characters, as S4 reads them: an id for each of an alphabet, one for all others, one for the end."""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

UNKNOWN, END, FIRST = 1, 2, 3  # ids; those of the alphabet begin with the last
PRINTABLE = "".join(map(chr, range(32, 127)))
LEAST = 15  # times that a character of an alphabet occurs
CODES = 0x110000


def alphabet_of(texts: Iterable[bytes], max_length: int) -> str:
    """The characters that occur `LEAST` times within the beginnings that rows keep, from the most frequent on."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_read(text)[: max_length - 1])
    return "".join(sorted((c for c, count in counts.items() if count >= LEAST), key=lambda c: (-counts[c], c)))


def vocab_size(alphabet: str) -> int:
    """Ids, with those of padding, of other characters and of the end."""
    return FIRST + len(alphabet)


def ids_of(text: str, alphabet: str) -> NDArray[np.unsignedinteger]:
    """The id of each character, without an end: ``(n,)`` of the smallest type that holds them."""
    return _table(alphabet)[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")]


def character_row(text: bytes, max_length: int, alphabet: str) -> NDArray[np.unsignedinteger]:
    """Ids of the first characters of a text in UTF-8, and of its end: `max_length` at most."""
    ids = ids_of(_read(text)[: max_length - 1], alphabet)
    return np.append(ids, ids.dtype.type(END))


def text_of(ids: Iterable[int], alphabet: str) -> str:
    """The characters that ids stand for, U+FFFD for what is none of the alphabet."""
    return "".join(alphabet[i - FIRST] if i >= FIRST else "\N{REPLACEMENT CHARACTER}" for i in ids)


def _read(text: bytes) -> str:
    return text.decode("utf-8", "replace")


@lru_cache(maxsize=2)
def _table(alphabet: str) -> NDArray[np.unsignedinteger]:
    """The id of every character there is."""
    table = np.full(CODES, UNKNOWN, np.min_scalar_type(vocab_size(alphabet) - 1))
    table[[ord(c) for c in alphabet]] = np.arange(FIRST, vocab_size(alphabet))
    return table
