"""SHA-256 of files, remembered by path, size and time: weights are read once, not at every look at a form."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from core import settings


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content in hex, from the cache where size and modification time are those of last time."""
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    store = settings.cache() / "fingerprints.json"
    known = _read(store)
    if key not in known:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        known = {**_read(store), key: found}  # read again: hashing took a while, and others write here, too
        _write(store, known)
    return known[key]


def _read(store: Path) -> dict[str, str]:
    try:
        data = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _write(store: Path, known: dict[str, str]) -> None:
    # a cache that cannot be written costs time, nothing else
    with contextlib.suppress(OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(
            "w", dir=store.parent, prefix=f".{store.name}-", delete=False, encoding="utf-8"
        ) as temporary:
            json.dump(dict(list(known.items())[-2000:]), temporary)
        os.replace(temporary.name, store)  # noqa: PTH105
