"""The comparison of the challenger with the version that serves, and the step that promotes it."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from scoring.batch.request import copied_request
from scoring.models.registry import ModelVersion
from scoring.monitoring.challenger import Comparison, compare_log, compare_request
from scoring.monitoring.challenger_report import (
    REPORT_NAME,
    Report,
    failed_thresholds,
    find_challenger,
    promote,
    write_report,
)
from scoring.monitoring.prediction_log import CHALLENGER
from scoring.predict import Policy
from scoring.serving import load_serving_model
from serving_assets.assets.batch_assets import batch_request
from serving_assets.assets.display import comparison_metadata, markdown_table
from serving_assets.assets.failures import failing_in_one_line
from serving_assets.assets.feature_assets import feast_registry
from serving_assets.assets.model_version import registered_model_version
from serving_assets.assets.monitoring import GROUP
from serving_assets.assets.plots import version_comparison
from serving_assets.records.history import newest_scored
from serving_assets.records.requests import find_request, list_requests, result_folder
from serving_assets.resources import Serving


class ComparisonConfig(dg.Config):
    """Run configuration of challenger_comparison."""

    requests: int = Field(default=1, ge=0, description="Number of the newest scored batch requests to compare.")
    days: int = Field(default=2, ge=1, description="Number of days (UTC) of the prediction log, the last one today.")


@dg.asset(
    deps=[batch_request, feast_registry, registered_model_version],
    group_name=GROUP,
    kinds={"mlflow", "parquet"},
    output_required=False,
    description="How the version under the alias `challenger` answers the same requests as the one that serves: scores "
    "the newest batch requests with both (`artifacts/<request>/comparison`), and compares their rows in the prediction "
    f"log, if SERVING_PREDICTION_LOG is set. The report, `artifacts/{REPORT_NAME}`, decides whether the job `promote` "
    "moves the alias. Without a challenger, a run materializes nothing.",
)
def challenger_comparison(
    context: dg.AssetExecutionContext, config: ComparisonConfig, serving: dg.ResourceParam[Serving]
) -> Iterator[dg.MaterializeResult[None]]:
    """Compare the challenger with the champion, and replace the report."""
    with failing_in_one_line():
        settings = serving.settings
        versions = find_challenger(serving.registry, settings)
        if versions is None:
            reason = f"The alias {CHALLENGER!r} of {settings.model_name} is not set, or names the serving version."
            context.log.warning(f"{reason} Nothing was compared.")
            context.log_event(dg.AssetObservation(context.asset_key, metadata={"challenger": reason}))
            return
        found = _compare(context.instance, config, serving, versions)
        reports = [report for report, _ in found]
        file = settings.artifacts / REPORT_NAME
        write_report(reports, file)
        failed = failed_thresholds(reports, settings)
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/uri": dg.MetadataValue.path(str(file)),
        "compared_rows": dg.MetadataValue.int(sum(report.rows for report in reports)),
        "changed_decisions": dg.MetadataValue.float(max((report.changed_share for report in reports), default=0.0)),
        "comparison": dg.MetadataValue.md(_sides(reports)),
        "promotion": dg.MetadataValue.text("; ".join(failed) or f"job promote would move {settings.model_alias}"),
    }
    for report, predictions in found:
        prefix = "log" if report.source == "log" else report.name
        metadata |= {f"{prefix}_{name}": value for name, value in comparison_metadata(predictions).items()}
        if predictions.predicted_by_both:
            metadata[f"{prefix}_plot"] = dg.MetadataValue.md(version_comparison(predictions))
    yield dg.MaterializeResult(metadata=metadata)


def _compare(
    instance: dg.DagsterInstance,
    config: ComparisonConfig,
    serving: Serving,
    versions: tuple[ModelVersion, ModelVersion],
) -> list[Comparison]:
    settings, store, policy = serving.settings, serving.open_feature_store(), Policy.from_settings(serving.settings)
    champion, challenger = (load_serving_model(serving.registry, store, each, settings) for each in versions)
    both, found = (champion, challenger), []
    if settings.prediction_log is not None:
        today = datetime.now(UTC).date()
        logged = [str(today - timedelta(days=before)) for before in reversed(range(config.days))]
        of_log = compare_log(settings.prediction_log, logged, both, settings.model_alias)
        found += [of_log] if of_log else []
    # With 0, the API may be all that is used: then there is no request folder.
    files = {file.key: file for file in list_requests(settings.batch_requests)} if config.requests else {}
    for key in newest_scored(instance, list(files), config.requests):
        with copied_request(find_request(settings.batch_requests, files, key)) as copy:
            folder = result_folder(settings.artifacts, key) / "comparison"
            found.append(compare_request(key, copy, both, store, serving.engine, policy, folder))
    return found


def _sides(reports: Sequence[Report]) -> str:
    rows = [
        {
            "rows": f"{report.source} {report.name}",
            "decisions": f"{report.changed_share:.2%} of {report.decisions} changed ({report.decision})",
            "version": side.version,
            "without prediction": f"{side.unscored} of {report.rows}",
            "reasons": ", ".join(f"{reason} {count}" for reason, count in side.reasons.items()),
            "latency p50, p99 in ms": None if side.p50_ms is None else f"{side.p50_ms:.1f}, {side.p99_ms:.1f}",
            "seconds": side.seconds,
        }
        for report in reports
        for side in (report.champion, report.challenger)
    ]
    return markdown_table(list(rows[0]), rows, 80) if rows else "no rows of both versions"


class Promotion(dg.Config):
    """Run configuration of promote_version."""

    version: int | None = Field(default=None, ge=1, description="The version. The default is the challenger.")
    force: bool = Field(default=False, description="Skip the thresholds of the challenger's comparison.")


@dg.op(description="Sets the alias on a version once it is admitted; on the challenger only if its comparison passes.")
def promote_version(context: dg.OpExecutionContext, config: Promotion, serving: dg.ResourceParam[Serving]) -> None:
    """Move the alias as `model-serving promote` does."""
    with failing_in_one_line():
        settings = serving.settings
        name, alias, registry = settings.model_name, settings.model_alias, serving.registry
        version = registry.version(name, config.version) if config.version else registry.resolve(name, CHALLENGER)
        load_serving_model(registry, serving.open_feature_store(), version, settings)
        before = promote(registry, settings, version.version, force=config.force)
    context.log.info(f"{name}@{alias} names version {version.version}, before: {before or 'none'}.")
