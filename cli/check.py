"""`model-serving check`: whether a version and everything that it needs can serve."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from cli.configuration import settings_options
from cli.display import EXIT_FAILURE, Progress, json_option, print_json, progress
from cli.stores import Stores, load_version, open_features, open_registry
from scoring.errors import ServingError, StorageError
from scoring.foreign_errors import first_line

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.files.location import Location
    from scoring.models.registry import MlflowRegistry
    from scoring.serving import ServingModel
    from scoring.settings import Settings

Status = Literal["ok", "warning", "failed", "skipped"]
EPILOG = """
\b
Examples:
  model-serving check
  model-serving check --version 2 --json
"""
COLORS: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}


class Finding(msgspec.Struct, frozen=True):
    """The result of one check."""

    check: str
    status: Status
    detail: str


class CheckWarning(Exception):
    """A check passed, but a user should know the message."""


@click.command(epilog=EPILOG)
@click.option("--version", type=click.IntRange(1), help="Model version. [default: the alias's]")
@settings_options
@json_option
def check(version: int | None, as_json: bool) -> int:
    """Check whether a version and its stores can serve.

    It loads the version as batch and the API do, joins and looks up one row, and checks the folders. The exit code is 1
    if a check failed. A warning marks something that works, but perhaps not as you expect.
    """
    with progress() as shown:
        findings = run_checks(version, shown)
    if as_json:
        print_json(findings)
    else:
        for each in findings:
            click.echo(f"{click.style(f'{each.status:<8}', COLORS[each.status])} {each.check:<14} {each.detail}")
    return EXIT_FAILURE if any(each.status == "failed" for each in findings) else 0


def run_checks(version: int | None, shown: Progress) -> list[Finding]:
    """Run all checks. One that needs the result of a failed one is skipped."""
    findings: list[Finding] = []

    def attempt(name: str, run: Callable[..., Any], *needed: Any) -> Any:
        shown.stage(f"Checking: {name}")
        status: Status = "ok"
        detail, found = "", None
        if any(each is None for each in needed):
            status, detail = "skipped", "depends on a check that failed"
        else:
            try:
                detail, found = run(*needed)
            except CheckWarning as warning:
                status, detail = "warning", str(warning)
            except ServingError as error:
                status, detail = "failed", str(error)
            except Exception as error:  # a check must not end the others
                status, detail = "failed", f"unexpected {type(error).__name__}: {first_line(error)}"
        findings.append(Finding(name, status, detail))
        return found

    settings, registry = open_registry(shown)
    resolved = attempt("registry", lambda: _registry(registry, settings, version))
    store = attempt("feature store", lambda: _feature_store(settings))
    serving = attempt("model", lambda number, store: _model(settings, registry, store, number), resolved, store)
    attempt("offline store", _offline_store, serving, store)
    attempt("online store", lambda serving, store: _online_store(serving, store, settings), serving, store)
    attempt("requests", lambda: _requests(settings.batch_requests))
    attempt("results", lambda: _results(settings.artifacts))
    if settings.scores_table is not None:
        attempt("scores table", _scores_table, settings.scores_table)
    return findings


def _registry(registry: "MlflowRegistry", settings: "Settings", version: int | None) -> tuple[str, int]:
    from scoring.serving import resolve_version

    found = resolve_version(registry, settings, version)
    return f"{found}" + ("" if version else f", which the alias {settings.model_alias} names"), found.version


def _feature_store(settings: "Settings") -> "tuple[str, FeatureStore]":
    from scoring.features.feature_store import read_definitions

    store = open_features(settings)
    applied = read_definitions(store)
    views, services = (", ".join(each) or "none" for each in (applied.feature_views, applied.feature_services))
    return f"{settings.feature_repo}: feature views {views}; feature services {services}", store


def _model(
    settings: "Settings", registry: "MlflowRegistry", store: "FeatureStore", version: int
) -> "tuple[str, ServingModel]":
    serving = load_version(Stores(settings, registry, store), version)
    inputs, outputs = len(serving.features.signature.names), ", ".join(serving.model.outputs.names)
    return f"{serving.model.version} is admitted: {inputs} inputs from {serving.features.service}, {outputs}", serving


def _offline_store(serving: "ServingModel", store: "FeatureStore") -> tuple[str, None]:
    """Join one made-up row, and read how old the sources are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from scoring.arrow.signature import EVENT_TIMESTAMP, NEUTRAL
    from scoring.batch.join import PointInTimeJoin
    from scoring.batch.quality import source_ages
    from scoring.batch.request import entity_columns
    from scoring.files.atomic import scratch_folder

    row = {
        name: pa.array([datetime.now(UTC) if name == EVENT_TIMESTAMP else NEUTRAL.get(dtype, 0)], dtype)
        for name, dtype in entity_columns(serving.features).items()
    }
    with scratch_folder() as scratch:
        pq.write_table(pa.table(row), scratch / "request.parquet")
        join = PointInTimeJoin(store, serving.features, scratch / "request.parquet", "one made-up row")
        for _ in join.tables():
            pass
    ages, now, listed = source_ages(store, serving.features), datetime.now(UTC), []
    for age in ages:
        listed.append(f"{age.feature_view} has events until {age.newest:%Y-%m-%d %H:%M}Z" if age.newest else "")
        if age.newest and age.ttl_s and (now - age.newest).total_seconds() > age.ttl_s:
            raise CheckWarning(f"{listed[-1]}, past its time to live: rows with the current time get no features.")
    return "; ".join(["one row joined", *filter(None, listed)]), None


def _online_store(serving: "ServingModel", store: "FeatureStore", settings: "Settings") -> tuple[str, None]:
    """Look up one entity: a stored one if the store can list its keys, otherwise a made-up one."""
    from scoring.arrow.signature import NEUTRAL
    from scoring.online.empty_views import EmptyViews, empty_views_problem
    from scoring.online.lookup import fastest_lookup, read_online_vectors
    from scoring.online.stored_keys import stored_keys
    from scoring.serving import check_online

    check_online(serving.model.version, serving.features)
    lookup = fastest_lookup(store, serving.features)
    made_up = {name: [NEUTRAL.get(dtype, 0)] for name, dtype in serving.features.request_columns.items()}
    known = stored_keys(store, lookup, serving.features)
    rows = {name: (known or {}).get(name, values)[:1] for name, values in made_up.items()}
    found = read_online_vectors(lookup, serving.features, rows, datetime.now(UTC))
    if empty := EmptyViews(store, serving.features).names:
        raise CheckWarning(empty_views_problem(empty, settings))
    reason = found.reasons[0].as_py()
    return f"one entity looked up: {'all features' if reason is None else reason}", None


def _requests(folder: "Location") -> tuple[str, None]:
    try:
        return f"{folder}: {len(folder.files())} files", None
    except FileNotFoundError:
        raise CheckWarning(f"there is no folder {folder}: create it, or set batch_requests.") from None


def _results(folder: "Location") -> tuple[str, None]:
    """Check that a file can be written, in S3 by writing one."""
    from scoring.files.transfer import publishing, remove_file

    if folder.local is None:
        probe = folder / ".model-serving-check"
        with publishing(probe) as part:
            part.write_bytes(b"")
        remove_file(probe)
    else:
        existing = next(each for each in (folder.local.absolute(), *folder.local.absolute().parents) if each.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
            raise StorageError("writing to", str(folder), f"{existing} is not a folder that this user can write to")
    return f"{folder} can be written", None


def _scores_table(place: "Location") -> tuple[str, None]:
    from scoring.batch.scores_table import ScoresTable

    return f"{place}: {'a table' if ScoresTable(place).check() else 'the first result creates a table there'}", None
