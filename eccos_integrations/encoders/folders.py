"""A StaticEmbedding on disk: read from a sentence-transformers folder, written as one with checksums. No pickle."""

import hashlib
import json
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eccos_integrations.errors import ConfigError, MissingExtraError

FORMAT = "eccos-static"
MANIFEST = "manifest.json"
MODULES = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.StaticEmbedding"}]


def cache_folder() -> Path:
    """Where the library keeps what it made once: ECCOS_CACHE_DIR, else a folder among the user's caches."""
    if folder := os.environ.get("ECCOS_CACHE_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eccos"


def read_model(folder: Path) -> tuple[NDArray[Any], bytes]:
    """The vectors (V, D) of a StaticEmbedding and its tokenizer.json.

    Raises:
        ConfigError: There is no such model in the folder, or it is damaged.
        MissingExtraError: safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load
    except ImportError:
        raise MissingExtraError("safetensors", "neural") from None
    try:
        _check(folder)
        place = _place(folder)
        weights = load((place / "model.safetensors").read_bytes())
        tokenizer = (place / "tokenizer.json").read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"encoder: {error.filename} is missing; give the folder of a sentence-transformers model "
                          "that is a StaticEmbedding, or make one with StaticEncoder.distil") from None  # fmt: skip
    except ConfigError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise ConfigError(f"encoder: {folder} is damaged ({type(error).__name__}); "
                          "remove it and make it again") from None  # fmt: skip
    if set(weights) not in ({"embedding.weight"}, {"embeddings"}):
        raise ConfigError(f"encoder: {folder} holds the arrays {sorted(weights)}; one of token vectors alone is read")
    return next(iter(weights.values())), tokenizer


def _place(folder: Path) -> Path:
    """Where in the folder the StaticEmbedding is."""
    modules = json.loads((folder / "modules.json").read_bytes())
    first, *others = [module["type"].rpartition(".")[2] for module in modules]
    if first != "StaticEmbedding" or set(others) - {"Normalize"}:
        raise ConfigError(f"encoder: {folder} holds {[first, *others]}, not a StaticEmbedding alone; "
                          "make one of it with StaticEncoder.distil")  # fmt: skip
    place: Path = folder / modules[0]["path"]
    return place


def _check(folder: Path) -> None:
    """Compares the checksums of a folder of ours; another's has none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return
    for name, checksum in manifest["files"].items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != checksum:
            raise ConfigError(f"encoder: {folder / name} is damaged (its checksum does not match); "
                              f"remove {folder} and make it again")  # fmt: skip


def write_model(folder: Path, table: NDArray[Any], tokenizer: bytes) -> None:
    """Write a model that `read_model` and sentence-transformers read; it appears whole or not at all.

    Raises:
        ConfigError: The path is taken by something else, or cannot be written.
    """
    from safetensors.numpy import save

    files = {
        "modules.json": json.dumps(MODULES, indent=1).encode(),
        "model.safetensors": save({"embedding.weight": table}),
        "tokenizer.json": tokenizer,
    }
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[MANIFEST] = json.dumps({"format": FORMAT, "files": checksums}, indent=1).encode()
    if folder.exists() and not _ours(folder):
        raise ConfigError(f"folder: {folder} holds something that is not a distilled encoder; give another path")
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    replaced = unfinished.with_suffix(".old")
    try:
        unfinished.mkdir(parents=True)
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        with suppress(FileNotFoundError):
            folder.rename(replaced)
        try:
            unfinished.rename(folder)
        except BaseException:
            if replaced.exists():
                replaced.rename(folder)
            raise
    except OSError as error:
        raise ConfigError(f"folder: {folder} cannot be written ({error.strerror}); check the path") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _ours(folder: Path) -> bool:
    """Whether the folder is empty or holds a distilled encoder: what may be replaced."""
    if not folder.is_dir():
        return False
    try:
        return not any(folder.iterdir()) or json.loads((folder / MANIFEST).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, LookupError, TypeError):
        return False
