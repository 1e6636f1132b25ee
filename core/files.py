"""Files that are there whole or not at all, also after a power cut; and what killed processes leave behind.

A file is written under a temporary name in its own folder, forced to disk, and renamed; then the folder is forced.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name to write to, of an empty file of its own; it takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def sync_tree(folder: Path) -> None:
    """Force every file of a folder to disk, then the folders."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in a folder: `.….tmp` files, and folders whose name begins with a dot.

    Only where nobody writes now.
    """
    for path in folder.glob(".*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".tmp":
            with suppress(OSError):
                path.unlink()


def sweep_of(path: Path) -> None:
    """Remove what killed writers of this one file left beside it. Only where nobody writes it now."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):
            left.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
