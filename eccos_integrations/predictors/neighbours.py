"""The most similar of many vectors, exact up to 200,000, approximate beyond; more can be added."""

import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.outcomes import FloatArray

EXACT = 200_000  # vectors; beyond, an inverted file looks into a part of them
# Neighbours equal to this many digits are ties, and the history's own order breaks them: faiss's rounding depends on
# how many queries are asked at once.
SIMILARITY_DIGITS = 5
SMALL = 10**9  # multiplications: where other programs are busy, waiting for a second thread takes longer
TIES, LEAST_TIES = 4, 16  # a quarter more than needed are looked at, and no fewer than so many


class Neighbours:
    """An index of vectors by inner product, in groups. Safe to ask and to add to from several threads.

    Args:
        vectors: (n, D) float32, kept by faiss as a copy.
        group: (n,) of which the nearest are found apart: many in one group push out none of another. Default: one.
    """

    def __init__(self, vectors: NDArray[np.float32], group: NDArray[np.int64] | None = None) -> None:
        self._parts: dict[int, tuple[Any, NDArray[np.int64]]] = {}  # by group: index, and the rows it holds
        self._lock = threading.Lock()  # faiss may not be searched while it grows
        self._n = 0
        self.add(vectors, group)

    def __len__(self) -> int:
        return self._n

    def add(self, vectors: NDArray[np.float32], group: NDArray[np.int64] | None = None) -> None:
        """Add vectors; their rows follow those already there."""
        group = np.zeros(len(vectors), dtype=np.int64) if group is None else group
        with self._lock:
            for name in np.unique(group).tolist():
                own = np.flatnonzero(group == name)
                index, rows = self._parts.get(name, (None, np.zeros(0, dtype=np.int64)))
                index = index or _index(vectors[own])
                index.add(np.ascontiguousarray(vectors[own]))
                self._parts[name] = index, appended(rows, self._n + own)
            self._n += len(vectors)

    def nearest(self, x: FloatArray, k: int, among: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """Similarities in 0..1 and rows of the k nearest of each group, most similar first, (N, k * groups) each.

        Where fewer are found, similarity 0 and row 0 stand in.

        Args:
            x: (N, D).
            k: How many.
            among: Only the first so many vectors count: those added since are passed over.
        """
        with self._lock:
            parts = [(*part, int(np.searchsorted(part[1], among))) for part in self._parts.values()]
            found = [_nearest(index, rows[:n], x, k) for index, rows, n in parts if n]
        return np.hstack([similarity for similarity, _ in found]), np.hstack([rows for _, rows in found])


def _nearest(index: Any, rows: NDArray[np.int64], x: FloatArray, k: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """The k nearest among the first vectors of the index, which are these rows."""
    import faiss

    only: Any = None
    if len(rows) < index.ntotal:
        first = faiss.IDSelectorRange(0, len(rows))
        ivf = isinstance(index, faiss.IndexIVF)
        only = faiss.SearchParametersIVF() if ivf else faiss.SearchParameters()
        only.sel = first
        if ivf:
            only.nprobe = index.nprobe
    more = k + max(k // TIES, LEAST_TIES)  # so that the history's order can settle ties at the end
    threads = faiss.omp_get_max_threads()  # of this thread; others keep theirs
    faiss.omp_set_num_threads(1 if x.size * index.ntotal < SMALL else threads)
    try:
        similarity, at = index.search(x.astype(np.float32), min(more, len(rows)), params=only)
    finally:
        faiss.omp_set_num_threads(threads)
    similarity = np.where(at >= 0, np.clip(similarity.astype(np.float64).round(SIMILARITY_DIGITS), 0, 1), 0.0)
    near = np.where(at >= 0, rows[at], 0)
    order = np.lexsort((near, -similarity), axis=1)[:, :k]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(near, order, axis=1)


def _index(vectors: NDArray[np.float32]) -> Any:
    """An empty index, fit for so many vectors like these."""
    import faiss

    n, dimensions = vectors.shape
    index: Any = faiss.IndexFlatIP(dimensions)
    if n > EXACT:
        cells = int(4 * np.sqrt(n))
        index = faiss.index_factory(dimensions, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:: max(1, n // (64 * cells))])
        index.nprobe = max(1, cells // 32)
    return index


_written: dict[int, int] = {}  # rows in use of every buffer with room to grow, by its id
_writing = threading.Lock()


def appended(array: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """The array with rows at its end. Readers of the array see no change; room to grow is shared, not copied.

    Only the longest array of a buffer grows in place: who appends to an earlier one gets a buffer of its own.
    """
    n, needed = len(array), len(array) + len(rows)
    buffer: Any = array.base
    with _writing:
        grows = buffer is not None and _written.get(id(buffer)) == n and needed <= len(buffer)
        if not grows:
            buffer = np.empty((needed + needed // 2, *array.shape[1:]), dtype=array.dtype)
            weakref.finalize(buffer, _written.pop, id(buffer))
        _written[id(buffer)] = needed
    if not grows:
        buffer[:n] = array
    buffer[n:needed] = rows
    grown: NDArray[Any] = buffer[:needed]
    return grown
