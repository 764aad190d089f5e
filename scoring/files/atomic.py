"""Files that a reader finds whole: the old one or the new one, never a part. What a crash leaves is cleared away."""

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
SYNC_BYTES, SYNC_EVERY_S = 8 << 20, 0.05


@contextlib.contextmanager
def whole_file(destination: Path) -> Iterator[Path]:
    """A path to write to, which becomes `destination` when the block ends well, and vanishes when it raises.

    Its folder is made where there is none, and vanishes with it. The bytes are on disk before the name changes. Two
    writers at once leave one of the two files, whole. What a killed writer of `destination` left behind is removed
    first.
    """
    destination = destination.absolute()
    if destination.is_dir():  # else that would show when all is written
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
            with contextlib.suppress(OSError):  # what was published is in it, or another writer's part
                destination.parent.rmdir()


@contextlib.contextmanager
def _synced_meanwhile(part: Path) -> Iterator[None]:
    """Bring what the block writes to the disk while it writes on, so that little is left to wait for at its end."""
    ended = threading.Event()
    with ThreadPoolExecutor(1, "sync") as thread:
        syncing = thread.submit(_sync_as_it_grows, part, ended)
        try:
            yield
        finally:
            ended.set()
        syncing.result()  # the system tells that a disk failed once: the last fsync would not hear of it again


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
    """A folder for this block's own files, in the system's temporary place (TMPDIR says where).

    Removed when the block ends; what killed processes left is removed first.

    Raises:
        OSError: there is no room for it, or what should hold it belongs to somebody else.
    """
    place = scratch_place()
    _remove_leftovers(place, SCRATCH_PREFIX, "")
    handle, folder = _new_scratch(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def scratch_place() -> Path:
    """The folder below TMPDIR that holds this user's scratch folders and nothing else.

    Raises:
        OSError: another user made something there.
    """
    place = Path(tempfile.gettempdir()) / f"model-serving-scratch-{os.getuid()}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        # Of no kind that says something of the place that is written to.
        raise OSError(f"{place} can't be made, because a file lies there: remove it, or set TMPDIR") from error
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "this is not a folder of ours: remove it, or set TMPDIR", str(place))
    return place


# Who still writes holds a lock on the file or folder, and the system lets go of it however its process ends. A lock,
# and not a process number or an age: containers that share a volume count processes each for itself, and runs may be
# long. Where the file system knows no locks, nothing is ever taken for a leftover.


def _remove_leftovers(folder: Path, prefix: str, suffix: str) -> None:
    with os.scandir(folder) as entries:
        found = [Path(each.path) for each in entries if each.name.startswith(prefix) and each.name.endswith(suffix)]
    for leftover in found:
        with contextlib.suppress(OSError):  # gone, somebody else's, or still being written
            handle = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
            finally:
                os.close(handle)


def _new_part(folder: Path, prefix: str) -> tuple[int, Path, bool]:
    """Handle and path of a part, and whether its folder was made for it."""
    made = False
    while True:
        made |= not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another writer, whose part is gone, took the folder with it
            _remove_leftovers(folder, prefix, ".part")
            handle, name = tempfile.mkstemp(dir=folder, prefix=prefix, suffix=".part")
            if _hold(handle, Path(name)):
                return handle, Path(name), made


def _new_scratch(place: Path) -> tuple[int, Path]:
    while True:
        folder = Path(tempfile.mkdtemp(dir=place, prefix=SCRATCH_PREFIX))
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(folder, os.O_RDONLY)
            if _hold(handle, folder):
                return handle, folder


def _hold(handle: int, path: Path) -> bool:
    """Lock what was just made; False (and closed) if another process took it for a leftover in between."""
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
