"""Hashed words, projected: no weights, no download, no vocabulary kept."""

import re
import zlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from eccos_integrations.encoders.base import Encoder, parts, unit
from eccos_integrations.errors import ConfigError
from eccos_integrations.outcomes import FloatArray

TOKEN = re.compile(r"\w+|[^\w\s]")
BUCKETS = 2**18  # n-grams share a bucket by chance; at this size hardly ever
MOST_BUCKETS = 20_000  # kept, the most frequent: the projection's size and its fit grow with them
PAIR = np.uint32(2_654_435_769)  # odd, so that "dog man" and "man dog" are two pairs
REMEMBERED = 2**15  # words, at most some megabytes
LONGEST_REMEMBERED = 32  # characters


class LexicalEncoder(Encoder):
    """Hashed word 1-2-grams weighted by idf, projected to a few hundred dimensions fitted on the history.

    Needs no weights and keeps no vocabulary, only hashes. Latent semantic analysis: Deerwester et al., "Indexing by
    Latent Semantic Analysis", JASIS 41(6), 1990.

    Args:
        dimensions: Most dimensions of the vectors; fewer where the history is small.

    Example:
        >>> encoder = LexicalEncoder().fit(["add two numbers", "add three numbers", "prove the theorem"])
        >>> vectors = encoder.encode(["add numbers", "prove it", "žluťoučký kůň"])
        >>> vectors.shape[0], bool(abs(vectors[0] @ vectors[1]) < 0.1), float(abs(vectors[2]).sum())
        (3, True, 0.0)
    """

    name = "lexical"

    def __init__(self, dimensions: int = 256) -> None:
        if dimensions < 1:
            raise ConfigError(f"dimensions: {dimensions}; give at least 1")
        self.dimensions = dimensions
        self._codes = _Codes()
        self._keep(np.zeros(0, dtype=np.int64), np.zeros((0, 1), dtype=np.float32))

    def _keep(self, buckets: NDArray[np.int64], table: NDArray[np.float32]) -> None:
        self._buckets = buckets  # sorted, those the history uses
        self._table = table  # (buckets, D): idf times projection
        self._row_of = np.full(BUCKETS, -1, dtype=np.int32)
        self._row_of[buckets] = np.arange(len(buckets))

    def fit(self, texts: Sequence[str], *, seed: int = 0) -> Self:
        """Learn idf weights and the projection.

        Args:
            texts: The queries of the history.
            seed: Start of the randomised singular value decomposition.
        """
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        every = np.arange(BUCKETS, dtype=np.int32)
        split = [texts[part] for part in parts(len(texts))]
        blocks = [csr_array(self._weights(some, every), shape=(len(some), BUCKETS)) for some in split]
        matrix = vstack(blocks, format="csr") if blocks else csr_array((0, BUCKETS), dtype=np.float32)
        in_texts = np.bincount(matrix.indices, minlength=BUCKETS)
        # What stands in one text alone cannot tell texts alike; a tiny history keeps everything.
        often = np.flatnonzero(in_texts >= (2 if len(texts) > 50 else 1))
        buckets = np.sort(often[np.argsort(-in_texts[often], kind="stable")][:MOST_BUCKETS])
        if not len(buckets):
            self._keep(buckets, np.zeros((0, 1), dtype=np.float32))
            return self
        idf = (np.log((1 + len(texts)) / (1 + in_texts[buckets])) + 1).astype(np.float32)
        matrix = matrix[:, buckets]
        matrix.data *= idf[matrix.indices]
        lengths = np.sqrt(matrix.power(2).sum(axis=1))
        matrix.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(matrix.indptr))
        dimensions = max(1, min(self.dimensions, *matrix.shape))
        with threadpool_limits(limits=1):  # BLAS threads that wait for a busy core cost many times what they save here
            _, _, axes = randomized_svd(matrix, dimensions, n_iter=7, random_state=seed)
        self._keep(buckets, np.ascontiguousarray(axes.T * idf[:, None], dtype=np.float32))
        return self

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of the texts, (N, D); one table look-up per n-gram."""
        vectors = np.zeros((len(texts), self._table.shape[1]))
        for part in parts(len(texts)):
            weights, rows, ends = self._weights(texts[part], self._row_of)
            for i in range(len(ends) - 1):  # one by one: the same sums in the same order, in a batch of any size
                of_text = slice(ends[i], ends[i + 1])
                if ends[i] == ends[i + 1]:
                    continue  # nothing known stands in it: zeros
                known = self._table.take(rows[of_text], axis=0)
                vectors[part.start + i] = np.einsum("i,ij->j", weights[of_text], known)
        return unit(vectors)

    def _weights(
        self, texts: Sequence[str], row_of: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
        """Damped counts of the n-grams by the rows of their buckets, as a CSR matrix has them; -1 is no row."""
        words = [TOKEN.findall(text.lower()) for text in texts]
        lengths = np.array([len(of_text) for of_text in words])
        codes = np.fromiter(map(self._codes.__getitem__, chain.from_iterable(words)), np.uint32, count=lengths.sum())
        text_of = np.repeat(np.arange(len(texts)), lengths)
        grams = np.zeros((2, len(codes)), dtype=np.uint32)
        grams[0] = codes
        grams[1, 1:] = codes[:-1] * PAIR + codes[1:]
        rows = row_of[grams % BUCKETS]
        rows[1, :1] = -1
        rows[1, 1:][text_of[1:] != text_of[:-1]] = -1  # no pair goes from one text into the next
        cells = text_of * BUCKETS + rows
        cells, counts = np.unique(cells[rows >= 0], return_counts=True)
        ends = np.searchsorted(cells, np.arange(len(texts) + 1) * BUCKETS).astype(np.int32)
        return 1 + np.log(counts.astype(np.float32)), (cells % BUCKETS).astype(np.int32), ends

    def unfitted(self) -> Self:
        """An encoder of the same settings that has learnt nothing yet."""
        return type(self)(self.dimensions)

    def settings(self) -> dict[str, Any]:
        """The number of dimensions asked for."""
        return {"dimensions": self.dimensions}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Hash buckets and their projection."""
        return {"buckets": self._buckets, "table": self._table}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The encoder that `settings` and `arrays` were taken from."""
        encoder = cls(**settings)
        encoder._keep(arrays["buckets"], arrays["table"])
        return encoder


class _Codes(dict[str, int]):
    """Hash of a word; those of recent words are looked up. crc32 is the same on every machine and run."""

    def __missing__(self, word: str) -> int:
        code = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        if len(word) <= LONGEST_REMEMBERED:
            if len(self) >= REMEMBERED:
                self.clear()
            self[word] = code
        return code

    def __reduce__(self) -> tuple[type["_Codes"], tuple[()]]:
        return type(self), ()  # nobody's words go along when the encoder is copied
