"""The report of a challenger's comparison: what it contains, and whether it allows the promotion."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.arrow.timestamps import TIMESTAMP
from scoring.errors import AliasNotSet, PromotionRefused, StorageError
from scoring.files.location import Location, storage_errors
from scoring.files.transfer import publishing
from scoring.models.promotions import Promotions
from scoring.models.registry import MlflowRegistry, ModelVersion, Registry
from scoring.monitoring.comparison import QUANTILES
from scoring.monitoring.prediction_log import CHALLENGER
from scoring.settings import Settings

REPORT_NAME = "challenger_comparison.parquet"


class Side(msgspec.Struct, frozen=True):
    """One of the two versions, in the compared rows."""

    version: str
    """`name/version`."""
    unscored: int
    """Rows without a prediction."""
    reasons: dict[str, int]
    """Reason, or problem of the request → rows without a prediction."""
    p50_ms: float | None = None
    """Median latency of a request in the log."""
    p99_ms: float | None = None
    seconds: float | None = None
    """Time in which a batch request was joined and scored."""


class Report(msgspec.Struct, frozen=True):
    """The comparison of the rows of one source."""

    source: Literal["log", "batch"]
    name: str
    """The days of the log, or the key of the batch request."""
    compared_at: datetime
    rows: int
    """Rows that both versions scored or failed to score."""
    decision: str
    """What counts as a decision."""
    decisions: int
    changed_decisions: int
    champion: Side
    challenger: Side
    outputs: list[dict[str, Any]]
    """How much each output that both versions have differs (`VersionComparison.outputs`)."""

    @property
    def changed_share(self) -> float:
        """Return the share of changed decisions."""
        return self.changed_decisions / max(self.decisions, 1)

    @property
    def error_increase(self) -> float:
        """Return the challenger's share of rows without a prediction minus the champion's."""
        return (self.challenger.unscored - self.champion.unscored) / max(self.rows, 1)

    @property
    def latency_ratio(self) -> float | None:
        """Return the challenger's median latency relative to the champion's; None without latencies."""
        champion, challenger = self.champion.p50_ms, self.challenger.p50_ms
        return challenger / champion if champion and challenger is not None else None


_OUTPUT = [("output", pa.string()), ("rows_that_differ", pa.int64()), ("share", pa.float64())]
_OUTPUT += [(f"{name}_change", pa.float64()) for name in (*QUANTILES, "largest", "mean")]
_SIDE = [("version", pa.string()), ("unscored", pa.int64()), ("reasons", pa.map_(pa.string(), pa.int64()))]
_SIDE += [(name, pa.float64()) for name in ("p50_ms", "p99_ms", "seconds")]
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("name", pa.string()),
        ("compared_at", TIMESTAMP),
        ("rows", pa.int64()),
        ("decision", pa.string()),
        ("decisions", pa.int64()),
        ("changed_decisions", pa.int64()),
        ("champion", pa.struct(_SIDE)),
        ("challenger", pa.struct(_SIDE)),
        ("outputs", pa.list_(pa.struct(_OUTPUT))),
    ]
)
"""The columns of the report's file: a row per source."""


def write_report(reports: Sequence[Report], file: Location) -> None:
    """Replace the report. Raises StorageError."""
    with publishing(file) as part:
        rows = [msgspec.to_builtins(report, builtin_types=(datetime,)) for report in reports]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), part)


def read_report(file: Location) -> list[Report]:
    """Read the report; empty if there is none. Raises StorageError."""
    try:
        with storage_errors("reading", file), file.open() as opened:
            rows = pq.read_table(opened).to_pylist(maps_as_pydicts="strict")
        return msgspec.convert(rows, list[Report])
    except FileNotFoundError:
        return []
    except (pa.ArrowInvalid, msgspec.ValidationError) as error:
        raise StorageError("reading", str(file), f"{error}: materialize challenger_comparison again") from None


def find_challenger(registry: Registry, settings: Settings) -> tuple[ModelVersion, ModelVersion] | None:
    """Return the champion and the challenger; None if there is no challenger, or it serves already.

    Raises:
        RegistryError: the registry can't be reached, or no version serves.
    """
    champion = registry.resolve(settings.model_name, settings.model_alias)
    try:
        challenger = registry.resolve(settings.model_name, CHALLENGER)
    except AliasNotSet:
        return None
    return None if challenger.version == champion.version else (champion, challenger)


def failed_thresholds(reports: Sequence[Report], settings: Settings) -> list[str]:
    """Return a phrase for each threshold that the comparison does not pass, with its value and limit."""
    rows = sum(report.rows for report in reports)
    too_few = _phrase(f"only {rows} rows were compared", "min_rows", settings)
    failed = [] if rows >= settings.promote_min_rows else [too_few]
    for report in reports:
        for value, what, setting in (
            (report.changed_share, "the share of changed decisions is {:.4g}", "max_changed_decisions"),
            (report.error_increase, "the error rate increases by {:.4g}", "max_error_rate_increase"),
            (report.latency_ratio, "the median latency is {:.4g} times the champion's", "max_latency_ratio"),
        ):
            limit = getattr(settings, f"promote_{setting}")
            if None not in (value, limit) and value > limit:
                failed.append(_phrase(f"{what.format(value)} ({report.source} {report.name})", setting, settings))
    if settings.promote_max_latency_ratio is not None and all(report.latency_ratio is None for report in reports):
        failed.append(_phrase("no median latency can be compared", "max_latency_ratio", settings))
    return failed


def _phrase(finding: str, setting: str, settings: Settings) -> str:
    return f"{finding}, and SERVING_PROMOTE_{setting.upper()} is {getattr(settings, f'promote_{setting}'):g}"


def promote(registry: MlflowRegistry, settings: Settings, version: int, *, force: bool) -> int | None:
    """Move the alias to an admitted version. Return the one that it named before.

    Raises:
        RegistryError: the registry can't be reached, or lacks the version.
        PromotionRefused: see `check_promotion`, which `force` skips.
    """
    if not force:  # after the version was admitted, because another promotion may end meanwhile
        check_promotion(registry, settings, version)
    return Promotions(registry, settings.model_name, settings.model_alias).promote(version)


def check_promotion(registry: Registry, settings: Settings, version: int) -> None:
    """Check that the report allows the promotion of a version, if it is the challenger.

    Raises:
        PromotionRefused: there is no report of the two versions, or a threshold is not passed.
        RegistryError, StorageError: the registry or the report can't be read.
    """
    try:
        both = find_challenger(registry, settings)
    except AliasNotSet:  # no version serves
        return
    if both is None or both[1].version != version:
        return
    file = settings.artifacts / REPORT_NAME
    names = [str(each) for each in both]
    # A model that was deleted and registered again has versions of the same names.
    registered = datetime.fromtimestamp(max(each.created_ms for each in both) / 1000, UTC)
    reports = [
        each
        for each in read_report(file)
        if [each.champion.version, each.challenger.version] == names and each.compared_at >= registered
    ]
    if not reports:
        missing = f"{file} has no comparison with {names[0]} since both were registered"
        raise PromotionRefused(names[1], f"{missing}: materialize challenger_comparison")
    if failed := failed_thresholds(reports, settings):
        raise PromotionRefused(names[1], "; ".join(failed))
