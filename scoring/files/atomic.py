"""Atomic file replacement and scratch folders, with cleanup after crashes.

A writer holds a lock on its unfinished file or folder. The system releases the lock when the process ends, even if it
is killed, so that an unlocked file or folder is a leftover. Process ids and ages are not sufficient: containers that
share a volume number their processes separately, and runs may be long. On a file system without locks, nothing is
treated as a leftover.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SCRATCH_PREFIX = "scratch-"
# How often a part is created again because another writer removed it or its folder.
ATTEMPTS = 100
SYNC_BYTES, SYNC_EVERY_S = 8 << 20, 0.05


@contextlib.contextmanager
def whole_file(destination: Path) -> Iterator[Path]:
    """Provide a path whose file replaces `destination` when the block ends, and is removed if the block raises.

    A missing folder is created, and removed again with the file. The bytes are on disk before the replacement. If two
    writers run at once, the last one to end wins. Leftovers of killed writers of `destination` are removed first.
    """
    destination = destination.absolute()
    if destination.is_dir():  # otherwise the replacement would fail, after all the writing
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(destination))
    prefix = f".{destination.name}."
    handle, part, made = _new_part(destination.parent, prefix)
    try:
        with _synced_meanwhile(part):
            yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(destination)
        _sync_folder(destination.parent)
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)
        if made:
            with contextlib.suppress(OSError):  # it contains the new file, or another writer's part
                destination.parent.rmdir()


@contextlib.contextmanager
def _synced_meanwhile(part: Path) -> Iterator[None]:
    """Sync the file to disk while the block writes it, so that little is left to sync at the end."""
    ended = threading.Event()
    with ThreadPoolExecutor(1, "sync") as thread:
        syncing = thread.submit(_sync_as_it_grows, part, ended)
        try:
            yield
        finally:
            ended.set()
        syncing.result()  # the system reports a disk failure to one fsync only, not again to the last one


def _sync_as_it_grows(part: Path, ended: threading.Event) -> None:
    synced = 0
    with part.open("rb") as file:
        while not ended.wait(SYNC_EVERY_S):
            size = os.fstat(file.fileno()).st_size
            if size - synced >= SYNC_BYTES:
                os.fsync(file.fileno())
                synced = size


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Provide a folder below TMPDIR that is removed when the block ends.

    Leftovers of killed processes are removed first.

    Raises:
        OSError: there is not enough disk space, or its parent can't be created or belongs to another user.
    """
    root = scratch_root()
    remove_leftovers(root, SCRATCH_PREFIX, "")
    handle, folder = _new_scratch(root)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def scratch_root() -> Path:
    """Create and return the folder below TMPDIR that contains only this user's scratch folders.

    Raises:
        OSError: it can't be created, or belongs to another user.
    """
    root = Path(tempfile.gettempdir()) / f"model-serving-scratch-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        # Raise another class, because these would seem to refer to the file that the caller writes.
        raise OSError(f"{root} can't be created, because a file has this name: remove it, or set TMPDIR") from error
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "not a folder of this user: remove it, or set TMPDIR", str(root))
    return root


def remove_leftovers(folder: Path, prefix: str, suffix: str) -> None:
    """Remove the files and folders with such names that no process holds the lock of."""
    with os.scandir(folder) as entries:
        found = [Path(each.path) for each in entries if each.name.startswith(prefix) and each.name.endswith(suffix)]
    for leftover in found:
        with contextlib.suppress(OSError):  # gone, another user's, or still being written
            handle = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
            finally:
                os.close(handle)


def _new_part(folder: Path, prefix: str) -> tuple[int, Path, bool]:
    """Create a part. Return its handle and path, and whether its folder was created for it."""
    made = False
    for _ in range(ATTEMPTS):
        made |= not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another writer removed its part, and the folder with it
            remove_leftovers(folder, prefix, ".part")
            handle, name = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=".part")
            if _lock(handle, Path(name)):
                return handle, Path(name), made
    raise FileNotFoundError(errno.ENOENT, "no file can be created in this folder", str(folder))


def _new_scratch(root: Path) -> tuple[int, Path]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=root, prefix=SCRATCH_PREFIX))
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)
            if _lock(handle, folder):
                return handle, folder


def _lock(handle: int, path: Path) -> bool:
    """Lock a new file or folder. If another process removed it as a leftover, close the handle and return False."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    except OSError:
        return True  # a file system without locks
    else:
        if path.exists():
            return True
    os.close(handle)
    return False


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
