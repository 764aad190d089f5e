"""Inspect finished batch files before they are published. Return check findings and metadata for Dagit."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from datetime import UTC, datetime

import dagster as dg
import msgspec
import pyarrow as pa

from scoring.batch.manifest import ScoringSummary, published_output
from scoring.batch.quality import SourceAge
from scoring.batch.request import input_types
from scoring.errors import StorageError
from scoring.features.model_features import ModelFeatures
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from scoring.foreign_errors import first_line
from scoring.monitoring.comparison import compare_with_replaced, sampled_table
from scoring.monitoring.drift import Baseline, ColumnDrift, Observed, describe_all, summary
from scoring.predict import MODEL_FAILED, NOT_FINITE
from scoring.settings import Settings
from serving_assets.assets.checks import (
    BASELINE,
    COLUMNS,
    DRIFT,
    FINITE,
    FRESH,
    NULLS,
    ROWS,
    STALE,
    Finding,
    stop_if_blocked,
)
from serving_assets.assets.display import comparison_metadata, drift_table, table_metadata
from serving_assets.assets.plots import histograms, version_comparison


class InputInspection:
    """Inspects one batch input (`scoring.batch.callbacks.InspectInput`). Findings are kept even if it raises."""

    def __init__(
        self,
        place: Location,
        features: ModelFeatures,
        settings: Settings,
        fresh: Finding,
        baseline: Baseline | None = None,
    ) -> None:
        self._place = place
        self._features = features
        self._settings = settings
        self._fresh = fresh
        self._baseline = baseline
        self.findings: list[Finding] = []
        self.metadata: dict[str, dg.MetadataValue] = {}

    def __call__(self, table: ParquetFiles, rows: int, stale: Mapping[str, int]) -> None:
        """Inspect the finished table.

        Raises:
            NotPublished: a blocking check failed.
        """
        columns = columns_finding(table.schema, self._features)
        self.findings = [rows_finding(rows, table.rows), columns]
        if columns.passed:
            self.findings += self._rates(table, stale)
        self.findings.append(self._fresh)
        stop_if_blocked(str(self._place), self.findings)
        observed = observe(self._baseline, sampled_table(table, self._features.signature.names))
        finding, drifts = drift_finding(BASELINE, observed, self._features, self._settings)
        self.findings.append(finding)
        self.metadata = table_metadata(table, self._place) | {"drift": drift_table(drifts)}

    def _rates(self, table: ParquetFiles, stale: Mapping[str, int]) -> list[Finding]:
        missing = {feature.input: table.nulls(feature.input) for feature in self._features.features}
        nulls = rates_finding(NULLS, missing, table.rows, self._settings.max_null_rate, "missing")
        by_input = {
            feature.input: max((stale[view] for view in feature.views if view in stale), default=0)
            for feature in self._features.features
        }
        if not stale and table.rows and any(view.ttl_s is not None for view in self._features.views):
            return [
                nulls,
                Finding(STALE, True, "unknown: the offline store can't distinguish stale from missing rows"),
            ]
        return [
            nulls,
            rates_finding(STALE, by_input, table.rows, self._settings.max_stale_rate, "past their time to live"),
        ]


class OutputInspection:
    """Inspects one batch output (`scoring.batch.callbacks.InspectOutput`). Findings are kept even if it raises."""

    def __init__(
        self,
        place: Location,
        features: ModelFeatures,
        settings: Settings,
        earlier: Baseline | None,
        drawing: Executor | None,
        baseline: Baseline | None = None,
    ) -> None:
        """Draw plots on `drawing`, one at a time, while the table is published; draw none if it is None."""
        self._place = place
        self._features = features
        self._settings = settings
        self._earlier = earlier
        self._drawing = drawing
        self._baseline = baseline
        self._plots: dict[str, Future[str]] = {}
        self._metadata: dict[str, dg.MetadataValue] = {}
        self.findings: list[Finding] = []

    @property
    def metadata(self) -> dict[str, dg.MetadataValue]:
        """Wait for the plots, and return the metadata that Dagit displays."""
        return self._metadata | {name: dg.MetadataValue.md(_markdown(plot)) for name, plot in self._plots.items()}

    def __call__(self, table: ParquetFiles, outcome: ScoringSummary) -> None:
        """Inspect the finished table.

        Raises:
            NotPublished: a blocking check failed.
        """
        columns = columns_finding(table.schema, self._features)
        self.findings = [rows_finding(outcome.rows, table.rows), columns, finite_finding(outcome)]
        names = outcome.output_names
        rows = sampled_table(table, names)
        found = {DRIFT: self._earlier, BASELINE: self._baseline}
        drifts: dict[str, list[ColumnDrift]] = {}
        for check, baseline in found.items():
            observed = observe(baseline, rows)
            finding, drifts[check] = drift_finding(check, observed, self._features, self._settings)
            self.findings.append(finding)
        stop_if_blocked(str(self._place), self.findings)
        self._metadata = table_metadata(table, self._place) | {"drift": drift_table(drifts[BASELINE])}
        compared = compare_with_replaced(self._place.parent, table, names)
        if compared is not None:
            self._metadata |= comparison_metadata(compared)
        if self._drawing is not None:
            drawn = histograms(table, names, self._features.signature.names)
            self._plots["distributions"] = self._drawing.submit(drawn)
            if compared is not None and compared.predicted_by_both:
                self._plots["changes"] = self._drawing.submit(version_comparison, compared)


def _markdown(plot: Future[str]) -> str:
    try:
        return plot.result()
    except Exception as error:  # matplotlib or numpy can't lay out the numbers; the output is published anyway
        return f"could not be drawn ({type(error).__name__}: {first_line(error)})"


def earlier_predictions(folders: Sequence[Location]) -> Baseline | None:
    """Return the distributions of the predictions in the first folder that has an output; None if none has one."""
    for folder in folders:
        try:
            parts, names = published_output(folder)
            with ParquetFiles(parts) as table:
                return describe_all(sampled_table(table, names), str(parts[0] if len(parts) == 1 else folder))
        except (StorageError, OSError, pa.ArrowInvalid, KeyError, msgspec.MsgspecError):
            continue  # the old output is unreadable; it must not block the new output
    return None


def rows_finding(requested: int, found: int) -> Finding:
    """Check that no row was lost or duplicated."""
    return Finding(ROWS, requested == found, f"{requested} rows in the request, {found} in the file")


def columns_finding(found: pa.Schema, features: ModelFeatures) -> Finding:
    """Check that the file has all inputs of the signature, with their types."""
    wrong = []
    types = input_types(features)
    for name, dtype in types.items():
        place = found.get_field_index(name)
        if place < 0:
            wrong.append(f"{name} is missing")
        elif found.field(place).type != dtype:
            wrong.append(f"{name} is {found.field(place).type}, not {dtype}")
    return Finding(COLUMNS, not wrong, "; ".join(wrong) or f"all {len(types)} inputs are present")


def finite_finding(outcome: ScoringSummary) -> Finding:
    """Check that the model returned a value, if a number a finite one, for each row with complete features."""
    broken, failed = outcome.reasons.get(NOT_FINITE, 0), outcome.reasons.get(MODEL_FAILED, 0)
    more = f"; the model failed on {failed} more rows" if failed else ""
    return Finding(
        FINITE, broken == 0, f"{broken} of {outcome.scored + broken} predictions are NaN, infinite or null{more}"
    )


def rates_finding(check: str, counts: Mapping[str, int], rows: int, limit: float, what: str) -> Finding:
    """Check that the share of counted rows is at most `limit` for each feature. Name the largest shares."""
    shares = sorted(((count / max(rows, 1), name) for name, count in counts.items()), reverse=True)
    over = [f"{name} {share:.1%}" for share, name in shares if share > limit]
    named = ", ".join(over or [f"{name} {share:.1%}" for share, name in shares[:3]]) or "no features"
    return Finding(check, not over, f"{what}: {named} of {rows} rows ({limit:.1%} allowed)")


def observe(baseline: Baseline | None, rows: pa.Table) -> Observed | None:
    """Return the counts of a table's columns; None without a baseline."""
    if baseline is None:
        return None
    observed = Observed(baseline)
    observed.add(rows)
    return observed


def drift_finding(
    check: str, observed: Observed | None, features: ModelFeatures, settings: Settings
) -> tuple[Finding, list[ColumnDrift]]:
    """Check that features and outputs are distributed as in the baseline, for BASELINE or DRIFT."""
    if observed is None:
        log_one = "there is no baseline: log one with the model (docs/monitoring.md)"
        return Finding(check, True, log_one if check == BASELINE else "there is no earlier output to compare with"), []
    problems: list[str] = []
    drifts = observed.drifts()
    for each in drifts:
        limit = settings.max_feature_drift if each.column in features.signature.names else settings.max_prediction_drift
        problems += each.problems(limit, settings.max_null_increase, settings.max_new_categories)
    return Finding(check, not problems, summary(observed, drifts, problems)), drifts


def fresh_finding(ages: Sequence[SourceAge], limit_s: float | None, now: datetime) -> Finding:
    """Check that the newest event of each source is recent enough."""
    summaries, passed = [], True
    for age in ages:
        allowed_s = limit_s or age.ttl_s
        if age.newest is None:
            summaries.append(f"{age.feature_view}: unknown")
            continue
        seconds = (now.astimezone(UTC) - age.newest).total_seconds()
        allowed = "no limit" if allowed_s is None else f"{_hours(allowed_s)} allowed"
        newest = f"newest event {age.newest.isoformat()}, {_hours(seconds)} old ({allowed})"
        summaries.append(f"{age.feature_view}: {newest}")
        passed &= allowed_s is None or seconds <= allowed_s
    return Finding(FRESH, passed, "; ".join(summaries) or "the model reads no feature view")


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h"
