"""The assets of what the API has served: the prediction log of each day, and its replay."""

import functools
import hashlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from scoring.errors import ServingError
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from scoring.foreign_errors import first_line
from scoring.monitoring.baseline import keep_first_day, measure_log, read_log, registered_baseline
from scoring.monitoring.drift import ColumnDrift, Observed
from scoring.monitoring.feast_log import copy_to_feast
from scoring.monitoring.log_files import LogFile, day_folder, fetch_log
from scoring.monitoring.replay import ReplayReport, files_by_version, report_file
from scoring.monitoring.replay import replay as replay_log
from scoring.monitoring.replay_causes import CAUSES, UNEXPLAINED
from scoring.serving import link_registered_version
from serving_assets.assets.checks import BASELINE, Finding, results, specs
from serving_assets.assets.display import drift_table, markdown_table, table_metadata
from serving_assets.assets.failures import failing_in_one_line, unset_in_run
from serving_assets.assets.inspection import drift_finding
from serving_assets.resources import Serving

if TYPE_CHECKING:
    from feast import FeatureStore

GROUP = "monitoring"
LOG_VARIABLE = "SERVING_PREDICTION_LOG"
# Of any day before the first log. `end_offset` adds today.
days = dg.DailyPartitionsDefinition(start_date="2026-01-01", end_offset=1)
EXPLAINED = "differences_explained"

Results = Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]


@dg.asset(
    partitions_def=days,
    group_name=GROUP,
    kinds={"parquet"},
    check_specs=specs("prediction_log", [BASELINE]),
    description="The rows that the API logged on one day (UTC): what it answered for which entity, from which feature "
    "values. Materializing it counts them, and copies new ones to the destination of the feature service's "
    "LoggingConfig, if it has one. In the graph only if SERVING_PREDICTION_LOG is set.",
)
def prediction_log(context: dg.AssetExecutionContext, serving: dg.ResourceParam[Serving]) -> Results:
    """Count the files and rows of this run's day, copy new ones to Feast, and compare them with the baselines."""
    with failing_in_one_line():
        folder = _folder(serving, context.partition_key)
        with scratch_folder() as scratch:
            files = fetch_log(folder, scratch)
            sizes = {file.place.name: file.copy.stat().st_size for file in files}
            store = serving.open_feature_store()
            copied = copy_to_feast(store, folder, files)
            versions: dict[tuple[str, int], list[LogFile]] = {}
            for ((name, version, _), _), logged in files_by_version(files).items():
                versions.setdefault((name, version), []).extend(logged)
            found = {
                f"{name}/{version}": _compare_with_baseline(
                    serving, store, (name, version), logged, context.partition_key
                )
                for (name, version), logged in versions.items()
            }
    findings = {model: [finding] for model, (finding, _) in found.items()}
    findings = findings or {"none": [Finding(BASELINE, True, "there are no rows of this day")]}
    yield from results("prediction_log", [BASELINE], findings, "version")
    names = "\n".join(f"{name} {size}" for name, size in sizes.items())
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(hashlib.sha256(names.encode()).hexdigest()),
        metadata={
            "dagster/uri": dg.MetadataValue.path(str(folder)),
            "dagster/row_count": dg.MetadataValue.int(sum(file.rows for file in files)),
            "files": dg.MetadataValue.int(len(files)),
            "rows_copied_to_feast": dg.MetadataValue.int(copied),
            "bytes": dg.MetadataValue.int(sum(sizes.values())),
            **{f"drift of {model}": drift_table(drifts) for model, (_, drifts) in found.items()},
        },
    )


@dg.asset(
    deps=[prediction_log],
    partitions_def=days,
    group_name=GROUP,
    kinds={"feast", "parquet"},
    check_specs=[
        dg.AssetCheckSpec(
            EXPLAINED,
            asset="replay",
            description="Every logged answer equals, to the bit, what batch computes as of the same time, or the "
            "difference has a known cause.",
        )
    ],
    description="Each logged row, joined again as of its time by the offline store and scored by the version that "
    "served it: `<SERVING_PREDICTION_LOG>/_replay/<day>.parquet` has a row and a cause for each answer that differs.",
)
def replay(context: dg.AssetExecutionContext, serving: dg.ResourceParam[Serving]) -> Results:
    """Replay the log of this run's day."""
    started = time.monotonic()
    with failing_in_one_line():
        folder = _folder(serving, context.partition_key)
        report = report_file(folder.parent, context.partition_key)
        found = replay_log(folder, serving.settings, serving.registry, serving.open_feature_store(), report)
        with ParquetFiles([report]) as table:
            metadata = table_metadata(table, report)
    metadata |= _metadata(found)
    metadata["duration_s"] = dg.MetadataValue.float(round(time.monotonic() - started, 1))
    unexplained = found.causes[UNEXPLAINED]
    summary = f"{found.different} of {found.rows} rows differ; {unexplained} without a known cause"
    yield dg.AssetCheckResult(
        passed=not unexplained, check_name=EXPLAINED, description=summary, metadata={"unexplained": unexplained}
    )
    yield dg.MaterializeResult(metadata=metadata)


def _folder(serving: Serving, day: str) -> Location:
    log = serving.settings.prediction_log
    if log is None:
        raise unset_in_run(LOG_VARIABLE)
    return day_folder(log, day)


def _compare_with_baseline(
    serving: Serving, store: "FeatureStore", model: tuple[str, int], files: list[LogFile], day: str
) -> tuple[Finding, list[ColumnDrift]]:
    """Compare a version's rows of a day with its training, or else with the first day of its log."""
    settings, registry = serving.settings, serving.registry
    assert settings.prediction_log is not None  # noqa: S101 - for the type checker
    try:
        version = registry.version(*model)
        features = link_registered_version(registry, store, version, settings)
        baseline = registered_baseline(registry, version, None)
    except ServingError as error:  # the version is gone, or its features have changed
        return Finding(BASELINE, True, f"not compared: {first_line(error)}"), []
    if baseline is None:
        measure = functools.partial(measure_log, files, features)
        baseline = keep_first_day(settings.prediction_log, version, day, measure)
    observed = Observed(baseline)
    for columns in read_log(files, features):
        observed.add(columns)
    return drift_finding(BASELINE, observed, features, settings)


def _metadata(found: ReplayReport) -> dict[str, dg.MetadataValue]:
    from serving_assets.assets.plots import counts

    causes = [{"cause": name, "rows": found.causes[name], "meaning": CAUSES[name]} for name in CAUSES]
    bars = {"equal": found.rows - found.different, **found.causes}
    return {
        "replayed_rows": dg.MetadataValue.int(found.rows),
        "different_rows": dg.MetadataValue.int(found.different),
        "unanswered_rows": dg.MetadataValue.int(found.unanswered),
        "versions": dg.MetadataValue.json(found.versions),
        "causes": dg.MetadataValue.md(markdown_table(["cause", "rows", "meaning"], causes, 80)),
        "plot": dg.MetadataValue.md(counts("Rows by cause", bars)),
    }
