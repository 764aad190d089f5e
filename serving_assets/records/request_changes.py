"""What one look at the request folder finds beside what is known: files to score, files to wait for."""

import time
from collections.abc import Mapping, Sequence

import msgspec

from scoring.errors import StorageError
from scoring.files.location import Location
from serving_assets.records.observations import Seen
from serving_assets.records.requests import RequestFile, read_hash
from serving_assets.records.retries import Attempts, again_at

# A file that was written to a moment ago may not be complete. Also longer than a clock's tick in any store (a second in
# S3): a file that changes after it was looked at shows it.
SETTLED_AFTER_S = 3
# A tick ends after 60 s. What is not read by then is read by the next one.
READING_S = 20
NAMED = 10
NEVER_FAILED = Attempts((), open=False)


class Known(msgspec.Struct, frozen=True):
    """What is known of the requests before the folder is looked at; all by partition key."""

    seen: Mapping[str, Seen] = {}
    """What was read of their files last."""
    attempts: Mapping[str, Attempts] = {}
    """The runs that failed over them."""
    busy: frozenset[str] = frozenset()
    """Those that a run is scoring."""
    ahead: tuple[str, ...] = ()
    """`Changes.ahead` of the look before this one."""

    def failures(self, file: RequestFile) -> tuple[float, ...]:
        """When runs over this content failed, in seconds since 1970."""
        tried, before = self.attempts.get(file.key, NEVER_FAILED), self.seen.get(file.key)
        if before is not None and before.fingerprint == file.fingerprint:
            return tried.ends
        return tried.of_content(file.modified_ns / 1e9, time.time())


class Changes(msgspec.Struct, frozen=True):
    """What a look has found."""

    files: tuple[tuple[RequestFile, str], ...] = ()
    """Files to score, each with its hash: new ones, those with other content than before, those whose run failed."""
    touched: tuple[tuple[RequestFile, str], ...] = ()
    """Files with another fingerprint but the same content."""
    waiting: tuple[str, ...] = ()
    """Why some files are not read yet."""
    ahead: tuple[str, ...] = ()
    """Fingerprints of the files whose modification time is in the future. Such a file may still be being written: it is
    taken when two ticks find the same fingerprint."""
    again: tuple[float, ...] = ()
    """When requests whose runs failed are taken again, in seconds since 1970; later than now."""


def find_changes(folder: Location, files: Sequence[RequestFile], known: Known) -> Changes:
    """Look at these files of the folder, and read those that look changed.

    Raises:
        StorageError: some can't be read, and there is no other to score.
    """
    until = time.monotonic() + READING_S
    found: list[tuple[RequestFile, str]] = []
    touched: list[tuple[RequestFile, str]] = []
    waiting: dict[str, list[str]] = {}
    again: list[float] = []
    broken: list[StorageError] = []
    for file in files:
        before, tried = known.seen.get(file.key), known.attempts.get(file.key, NEVER_FAILED)
        if before is not None and before.fingerprint == file.fingerprint and (not tried.open or file.key in known.busy):
            continue
        due_s = again_at(known.failures(file))
        if reason := _wait_for(file, known, until):
            waiting.setdefault(reason, []).append(file.name)
        elif due_s > time.time():
            again.append(due_s)
        else:
            try:
                sha256 = read_hash(folder, file)
            except FileNotFoundError:
                continue
            except StorageError as error:
                broken.append(error)
                continue
            same = before is not None and before.sha256 == sha256 and not tried.open
            (touched if same else found).append((file, sha256))
    if broken and not found and not touched:
        raise broken[0]  # probably an outage: the tick fails
    told = [f"{len(names)} new or changed files {reason}{_named(reason, names)}" for reason, names in waiting.items()]
    if broken:
        told.append(f"{len(broken)} new or changed files can't be read ({broken[0]})")
    ahead = tuple(file.fingerprint for file in files if _is_ahead(file))
    return Changes(tuple(found), tuple(touched), tuple(told), ahead, tuple(again))


FROM_THE_FUTURE = "have a modification time in the future, and are taken if they do not change"


def _wait_for(file: RequestFile, known: Known, until: float) -> str | None:
    """Why this file is not read yet; None if it is."""
    before = known.seen.get(file.key)
    if before is None or before.fingerprint != file.fingerprint:
        if _is_ahead(file):
            if file.fingerprint not in known.ahead:
                return FROM_THE_FUTURE
        elif file.modified_ns / 1e9 > time.time() - SETTLED_AFTER_S:
            return "are still being written"
    if file.key in known.busy:
        return "are being scored, and are looked at again after that"
    if time.monotonic() > until:
        return "are looked at by the next tick"
    return None


def _is_ahead(file: RequestFile) -> bool:
    return file.modified_ns / 1e9 > time.time()


def _named(reason: str, names: Sequence[str]) -> str:
    if reason != FROM_THE_FUTURE:
        return ""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f" ({', '.join(names[:NAMED])}{more})"
