"""A folder of checksummed arrays and one JSON manifest: how a router is kept on disk. No pickle.

The checksums find damage, not tampering: whoever can change a file can change its checksum too.
"""

import hashlib
import io
import json
import shutil
import threading
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eccos_integrations.errors import ArtifactError

FORMAT = "eccos-router"
VERSION = 2
MANIFEST = "manifest.json"
FILES = (
    "encoder.npz", "predictor.npz", "evidence.npz", "fitted.npz", "fitted_evidence.npz", "outcomes.npz",
)  # fmt: skip  # nothing else is ever read

Arrays = Mapping[str, NDArray[Any]]

_swap = threading.Lock()  # two renames, which two threads must not mix


def write_artifact(folder: Path, settings: Mapping[str, Any], files: Mapping[str, Arrays]) -> None:
    """Write settings and arrays; the folder appears whole or not at all, an older artifact there is replaced.

    Raises:
        ArtifactError: The path is taken by something that is not an artifact.
    """
    folder = folder.resolve()  # through links, and "." gets a name
    if folder.exists() and not _ours(folder):
        raise ArtifactError(f"{folder} holds something that is not a saved router; give another path")
    mark = uuid.uuid4().hex
    unfinished = folder.with_name(f".{folder.name}.{mark}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error.strerror}); check the path") from None
    try:
        checksums = {}
        for name, arrays in files.items():
            packed = io.BytesIO()
            np.savez(packed, allow_pickle=False, **arrays)
            (unfinished / name).write_bytes(packed.getvalue())
            checksums[name] = hashlib.sha256(packed.getvalue()).hexdigest()
        body = {"format": FORMAT, "version": VERSION, "files": checksums, "settings": settings}
        (unfinished / MANIFEST).write_bytes(_manifest(body))
        replaced = folder.with_name(f".{folder.name}.{mark}.old")
        with _swap:
            if folder.exists():
                folder.rename(replaced)
            try:
                unfinished.rename(folder)
            except BaseException:
                if replaced.exists():
                    replaced.rename(folder)
                raise
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            raise ArtifactError(f"{folder}: cannot be written ({error.strerror}); check the path") from None
        raise


def _ours(folder: Path) -> bool:
    """Whether the folder is empty or holds a saved router and nothing else: what may be replaced."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or (names <= {MANIFEST, *FILES} and f'"format": "{FORMAT}"'.encode() in _bytes(folder / MANIFEST))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def read_artifact(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, NDArray[Any]]]]:
    """Settings and arrays, every byte checked.

    Raises:
        ArtifactError: A file is missing, damaged, or from a newer version; names the file.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
    except OSError:
        raise ArtifactError(f"{folder}: no {MANIFEST} there; give the folder that save() wrote") from None
    try:
        manifest = json.loads(raw)
        version = manifest["version"]
        newer = manifest["format"] == FORMAT and type(version) is int and version > VERSION
        checksum = manifest.pop("checksum")
        whole = raw == _manifest(manifest) and isinstance(checksum, str)
        whole = whole and type(version) is int and version == VERSION
        whole = whole and manifest["format"] == FORMAT and set(manifest["files"].keys()) == set(FILES)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = newer = False
    if newer:
        raise ArtifactError(f"{folder}: written in format {version}, this version reads up to {VERSION}; upgrade "
                            "eccos-integrations")  # fmt: skip
    if not whole:
        raise ArtifactError(f"{folder / MANIFEST} is damaged; save the router again")
    arrays = {name: _read_arrays(folder / name, manifest["files"][name]) for name in FILES}
    return manifest["settings"], arrays


def _read_arrays(path: Path, checksum: str) -> dict[str, NDArray[Any]]:
    try:
        raw = path.read_bytes()
    except OSError:
        raise ArtifactError(f"{path} is missing; save the router again") from None
    if hashlib.sha256(raw).hexdigest() != checksum:
        raise ArtifactError(f"{path} is damaged (its checksum does not match); save the router again")
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as packed:
            return {name: packed[name] for name in packed.files}
    except (ValueError, OSError, zipfile.BadZipFile):
        raise ArtifactError(f"{path} does not hold plain arrays; save the router again") from None


def _manifest(body: Mapping[str, Any]) -> bytes:
    """The manifest's bytes: one way to write it, so that any other bytes are damage."""
    content = json.dumps(body, sort_keys=True, ensure_ascii=True, allow_nan=False)
    whole = {**body, "checksum": hashlib.sha256(content.encode()).hexdigest()}
    return json.dumps(whole, sort_keys=True, ensure_ascii=True, allow_nan=False, indent=1).encode() + b"\n"
