"""Find the files in the request folder that are to be scored, and those to wait for."""

import time
from collections.abc import Mapping, Sequence

import msgspec

from scoring.errors import StorageError, listed
from scoring.files.location import Location
from serving_assets.records.observations import Seen
from serving_assets.records.requests import RequestFile, read_hash
from serving_assets.records.retries import FailedAttempt

# A file that was written more recently may be incomplete. This exceeds the clock resolution of all stores (a second in
# S3), so a file that changes after it was read has another modification time.
SETTLED_AFTER_S = 3
# A tick times out after 60 s. The next tick reads the files that are left.
READING_S = 20


class Known(msgspec.Struct, frozen=True):
    """The recorded state of the requests before the folder is read, by partition key."""

    seen: Mapping[str, Seen] = {}
    """The last read state of their files."""
    attempts: Mapping[str, FailedAttempt] = {}
    """Their last runs, if those failed."""
    busy: frozenset[str] = frozenset()
    """Requests that a run is scoring or queued for."""
    ahead: tuple[str, ...] = ()
    """`Changes.ahead` of the previous tick."""

    def attempt(self, file: RequestFile) -> FailedAttempt | None:
        """Return the last run if it failed and the file has not changed since."""
        tried, before = self.attempts.get(file.key), self.seen.get(file.key)
        if tried is None or (before is not None and before.fingerprint == file.fingerprint):
            return tried
        modified_s = file.modified_ns / 1e9
        return tried if tried.ended_s > modified_s or modified_s > time.time() else None

    def failures(self, file: RequestFile) -> int:
        """Return how many runs in a row failed over this content."""
        tried = self.attempt(file)
        return tried.failures if tried else 0


class Changes(msgspec.Struct, frozen=True):
    """Result of a tick."""

    files: tuple[tuple[RequestFile, str], ...] = ()
    """Files to score with their hashes: new ones, changed ones, and those whose run failed."""
    touched: tuple[tuple[RequestFile, str], ...] = ()
    """Files with another fingerprint but the same content, with their hashes."""
    waiting: tuple[str, ...] = ()
    """One reason per group of files that are not read yet, with their names."""
    ahead: tuple[str, ...] = ()
    """Fingerprints of the files whose modification time is in the future. Such a file may be incomplete: it is read
    when two ticks find the same fingerprint."""
    retries: tuple[tuple[float, str], ...] = ()
    """Times (seconds since 1970, in the future) and keys of the requests that will be retried."""


def find_changes(folder: Location, files: Sequence[RequestFile], known: Known) -> Changes:
    """Compare these files with their recorded state, and read those that may have changed.

    Raises:
        StorageError: a file can't be read, and no other file has changed.
    """
    until = time.monotonic() + READING_S
    found: list[tuple[RequestFile, str]] = []
    touched: list[tuple[RequestFile, str]] = []
    waiting: dict[str, list[str]] = {}
    retries: list[tuple[float, str]] = []
    broken: list[StorageError] = []
    for file in files:
        before, last, tried = known.seen.get(file.key), known.attempts.get(file.key), known.attempt(file)
        is_open = last is not None and last.open
        if before is not None and before.fingerprint == file.fingerprint and (not is_open or file.key in known.busy):
            continue
        if reason := _wait_for(file, known, until):
            waiting.setdefault(reason, []).append(file.name)
        elif tried is not None and tried.retry_s > time.time():
            retries.append((tried.retry_s, file.key))
        else:
            try:
                sha256 = read_hash(folder, file)
            except FileNotFoundError:
                continue
            except StorageError as error:
                broken.append(error)
                continue
            same = before is not None and before.sha256 == sha256 and not is_open
            (touched if same else found).append((file, sha256))
    if broken and not found and not touched:
        raise broken[0]  # probably an outage: the tick fails
    reasons = [f"{len(names)} new or changed files {reason} ({listed(names)})" for reason, names in waiting.items()]
    if broken:
        reasons.append(f"{len(broken)} new or changed files can't be read ({broken[0]})")
    ahead = tuple(file.fingerprint for file in files if _is_ahead(file))
    return Changes(tuple(found), tuple(touched), tuple(reasons), ahead, tuple(retries))


def _wait_for(file: RequestFile, known: Known, until: float) -> str | None:
    """Return why this file is not read yet; None if it can be read."""
    before = known.seen.get(file.key)
    if before is None or before.fingerprint != file.fingerprint:
        if _is_ahead(file):
            if file.fingerprint not in known.ahead:
                return "have a modification time in the future and are read if the next tick finds them unchanged"
        elif file.modified_ns / 1e9 > time.time() - SETTLED_AFTER_S:
            return "are still being written"
    if file.key in known.busy:
        return "are being scored and are read again after that"
    if time.monotonic() > until:
        return "are read by the next tick"
    return None


def _is_ahead(file: RequestFile) -> bool:
    return file.modified_ns / 1e9 > time.time()
