"""What the surface of a text tells: its length, its digits, its code, its options. No words are kept."""

from collections.abc import Sequence

import numpy as np

from eccos_integrations.outcomes import FloatArray

SURFACES = 18
LENGTH = 10  # the column of the length in bytes, as log1p
MOST_BYTES = 20_000  # of a text that are looked at for words and marks; its length always counts in full

_OPTIONS = frozenset(
    form % bytes([letter]) for letter in b"abcdefghij" for form in (b"%s)", b"(%s)", b"%s.", b"%s:", b"(%s")
)
_CODE = frozenset(b"def return class import for while if else const var int void function print select from".split())
_ASKING = frozenset(b"what who whom when where why how which is are does do can".split())
_MARKS = (
    b"0123456789",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    b"()[]{}",
    b"+-*/=<>^%|&",
    b"\"'`",
    b"\\$",
    b",;:",
    b".!",
    b"\n",
    b"?",
    bytes(range(128, 256)),  # whatever is not ASCII
)
_OF_MARK = np.zeros((256, len(_MARKS)))
for _column, _bytes in enumerate(_MARKS):
    _OF_MARK[list(_bytes), _column] = 1
_IS_DIGIT = _OF_MARK[:, 0].astype(np.int8)


def surface(texts: Sequence[str]) -> FloatArray:
    r"""Counts and shares of what texts look like, (N, 18), on scales a linear model can use.

    Args:
        texts: N texts of any kind.

    Example:
        >>> plain, code = surface(["Who wrote it?", "def f(x):\n    return x == 2"])
        >>> plain.shape, bool(code[14] > plain[14])
        ((18,), True)
    """
    rows = [_row(text) for text in texts]
    return np.array(rows) if rows else np.zeros((0, SURFACES))


def _row(text: str) -> FloatArray:
    whole = text.encode("utf-8", "surrogatepass")
    raw = whole[:MOST_BYTES]
    codes = np.frombuffer(raw, np.uint8)
    marks = np.bincount(codes, minlength=256) @ _OF_MARK
    words = raw.lower().split()
    distinct = set(words)
    row = np.empty(SURFACES)
    row[:10] = marks[:10]
    row[LENGTH] = len(whole)
    row[11] = len(words)
    row[12] = np.count_nonzero(np.diff(_IS_DIGIT[codes], prepend=np.int8(0)) == 1)  # numbers
    row[13] = len(distinct & _OPTIONS)
    row[14] = len(distinct & _CODE)
    row[15] = len(distinct & _ASKING)
    row[:16] = np.log1p(row[:16])
    row[16] = len(distinct) / max(len(words), 1)
    row[17] = marks[10] / max(len(raw), 1)
    return row
