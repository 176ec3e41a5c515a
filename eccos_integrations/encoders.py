"""Text to vectors: lexical (no weights, no download), sentence-transformers, or any callable."""

import hashlib
import re
import threading
import zlib
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eccos_integrations.errors import ArtifactError, ConfigError, MissingExtraError
from eccos_integrations.outcomes import FloatArray

BUCKETS = 2**18  # n-grams share a bucket by chance; at this size hardly ever
MOST_BUCKETS = 20_000  # kept, the most frequent: the projection's size and its fit grow with them
TOKEN = re.compile(r"\w+|[^\w\s]")


class Encoder(ABC):
    """Turns texts into vectors of unit length (or zero, where a text says nothing the encoder knows).

    Two calls make one: `fit` on the texts of the history, then `encode` any texts. One text at a time or many at once
    gives the same vectors.
    """

    name: str

    def fit(self, texts: Sequence[str], *, seed: int = 0) -> Self:  # most encoders learn nothing here
        """Learn what is needed from the texts of the history."""
        return self

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of the texts, (N, D)."""

    def unfitted(self) -> Self:
        """An encoder of the same settings that has learnt nothing yet; the same one where nothing is ever learnt."""
        return self

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `restore` needs beside the arrays; plain JSON, no words of the history."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was learnt, as arrays."""
        return {}

    @classmethod
    @abstractmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The encoder that `settings` and `arrays` were taken from."""


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
        self._buckets: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # sorted, those the history uses
        self._table: NDArray[np.float32] = np.zeros((0, 1), dtype=np.float32)  # (buckets, D): idf times projection
        self._row_of: dict[int, int] = {}

    def fit(self, texts: Sequence[str], *, seed: int = 0) -> Self:
        """Learn idf weights and the projection.

        Args:
            texts: The queries of the history.
            seed: Start of the randomised singular value decomposition.
        """
        from scipy.sparse import csr_array
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        counts = [Counter(_buckets(text)) for text in texts]
        in_texts = Counter(bucket for count in counts for bucket in count)
        # What stands in one text alone cannot tell texts alike; a tiny history keeps everything.
        least = 2 if len(texts) > 50 else 1
        often = sorted((b for b, n in in_texts.items() if n >= least), key=lambda b: (-in_texts[b], b))
        self._buckets = np.array(sorted(often[:MOST_BUCKETS]), dtype=np.int64)
        self._row_of = {int(bucket): row for row, bucket in enumerate(self._buckets)}
        if not self._row_of:
            self._table = np.zeros((0, 1), dtype=np.float32)
            return self
        document_frequency = np.array([in_texts[int(bucket)] for bucket in self._buckets])
        idf = np.log((1 + len(texts)) / (1 + document_frequency)) + 1
        rows, columns, values = [], [], []
        for row, count in enumerate(counts):
            known, weights = self._weights(count)
            weighted = weights * idf[known]
            rows += [row] * len(known)
            columns += known.tolist()
            values += (weighted / max(np.linalg.norm(weighted), 1e-12)).tolist()
        matrix = csr_array((values, (rows, columns)), shape=(len(texts), len(self._buckets)))
        dimensions = max(1, min(self.dimensions, *matrix.shape))
        with threadpool_limits(limits=1):  # BLAS threads that wait for a busy core cost many times what they save here
            _, _, axes = randomized_svd(matrix, dimensions, n_iter=7, random_state=seed)
        self._table = (axes.T * idf[:, None]).astype(np.float32)
        return self

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of the texts, (N, D); one table look-up per n-gram."""
        vectors = np.zeros((len(texts), self._table.shape[1]))
        for row, text in enumerate(texts):
            known, weights = self._weights(Counter(_buckets(text)))
            if len(known):
                vectors[row] = weights @ self._table[known]
        return _unit(vectors)

    def _weights(self, count: Counter[int]) -> tuple[NDArray[np.int64], FloatArray]:
        """Rows of the known buckets and their damped counts, in a fixed order."""
        known = sorted((self._row_of[bucket], n) for bucket, n in count.items() if bucket in self._row_of)
        if not known:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        rows, counts = np.array(known).T
        return rows, 1 + np.log(counts)

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
        encoder._buckets, encoder._table = arrays["buckets"], arrays["table"]
        encoder._row_of = {int(bucket): row for row, bucket in enumerate(encoder._buckets)}
        return encoder


class CallableEncoder(Encoder):
    """Any function from a list of texts to an array of vectors, with the vectors of recent texts remembered.

    Args:
        function: Takes `list[str]`, returns an (N, D) array.
    """

    name = "callable"
    remembered = 20_000  # texts; cross-validation asks for the same ones again and again

    def __init__(self, function: Callable[[list[str]], ArrayLike]) -> None:
        self.function = function
        self._recent: OrderedDict[bytes, FloatArray] = OrderedDict()  # by digest: no prompt is kept
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of the texts, (N, D), scaled to unit length.

        Raises:
            ConfigError: The function returned something else than one finite vector per text.
        """
        digests = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
        recent = ((digest, self._recent.get(digest)) for digest in digests)
        known = {digest: vector for digest, vector in recent if vector is not None}
        new = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in known}
        if new:
            found = dict(zip(new, self._compute(list(new.values())), strict=True))
            known.update(found)
            with self._lock:
                self._recent.update(found)
                while len(self._recent) > self.remembered:
                    self._recent.popitem(last=False)
        vectors = [known[digest] for digest in digests]
        if len(widths := {len(vector) for vector in vectors}) > 1:
            raise ConfigError(
                f"encoder: returned vectors of {sorted(widths)} numbers; return the same number each time"
            )
        return np.array(vectors) if vectors else np.zeros((0, 1))

    def _compute(self, texts: list[str]) -> FloatArray:
        returned = self.function(texts)
        try:
            vectors = np.asarray(returned, dtype=np.float64)
        except (TypeError, ValueError):
            raise ConfigError("encoder: returned no array; return one vector of finite numbers per text") from None
        if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.size or not np.isfinite(vectors).all():
            raise ConfigError(f"encoder: returned shape {vectors.shape} for {len(texts)} texts; "
                              "return one vector of finite numbers per text")  # fmt: skip
        return _unit(vectors)

    def settings(self) -> dict[str, Any]:
        """Nothing: a function cannot be saved, only given again."""
        return {}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Not possible.

        Raises:
            ArtifactError: Always; says how to load instead.
        """
        raise ArtifactError("the router was fitted with a function as encoder; give it again: load(folder, encoder=f)")


class SentenceTransformerEncoder(CallableEncoder):
    """A sentence-transformers model, by folder or by the name of one already on this machine. Never downloads.

    Args:
        model: Folder, or name in the local cache.
    """

    name = "sentence-transformers"

    def __init__(self, model: str | Path) -> None:
        if not str(model):
            raise ConfigError("encoder: '' names no model; give a name or a folder, or 'lexical'")
        super().__init__(self._embed)
        self.model = str(model)
        self._loaded: Any = None

    def _embed(self, texts: list[str]) -> ArrayLike:
        if self._loaded is None:
            self._loaded = _load_sentence_transformer(self.model)
        # Tokenizers take no lone surrogates.
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        vectors: ArrayLike = self._loaded.encode(texts, convert_to_numpy=True, show_progress_bar=False)
        return vectors

    def settings(self) -> dict[str, Any]:
        """The model's name or folder."""
        return {"model": self.model}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The encoder of the same model."""
        return cls(**settings)


def _load_sentence_transformer(model: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise MissingExtraError("sentence-transformers", "neural") from None
    try:
        return SentenceTransformer(model, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001  # a damaged model may raise anything
        raise ConfigError(
            f"encoder: no sentence-transformers model {model!r} on this machine ({type(error).__name__}); "
            "download it first and give its folder, or use encoder='lexical'"
        ) from None


ENCODERS: dict[str, type[Encoder]] = {
    encoder.name: encoder for encoder in (LexicalEncoder, CallableEncoder, SentenceTransformerEncoder)
}

EncoderLike = str | Path | Encoder | Callable[[list[str]], ArrayLike]


def make_encoder(encoder: EncoderLike) -> Encoder:
    """The encoder a user means.

    Args:
        encoder: `"lexical"`, the name or folder of a sentence-transformers model, a function from texts to an array,
            or an `Encoder`.

    Raises:
        ConfigError: It is none of these.
    """
    if isinstance(encoder, Encoder):
        return encoder
    if encoder == LexicalEncoder.name:
        return LexicalEncoder()
    if isinstance(encoder, str | Path):
        return SentenceTransformerEncoder(encoder)
    if callable(encoder):
        return CallableEncoder(encoder)
    raise ConfigError(f"encoder: {type(encoder).__name__} is not a name, a folder, a function or an Encoder")


def _buckets(text: str) -> Iterator[int]:
    """Hashes of the text's words, marks and pairs of neighbours. crc32 is the same on every machine and run."""
    tokens = [token.encode("utf-8", "surrogatepass") for token in TOKEN.findall(text.lower())]
    for token in tokens:
        yield zlib.crc32(token) % BUCKETS
    for first, second in pairwise(tokens):
        yield zlib.crc32(second, zlib.crc32(first + b" ")) % BUCKETS


def _unit(vectors: FloatArray) -> FloatArray:
    # By the largest first, so that no square over- or underflows.
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    vectors = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: FloatArray = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return unit
