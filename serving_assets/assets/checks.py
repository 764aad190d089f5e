"""The asset checks of batch requests: their definitions and results.

Blocking checks examine the finished file before it is published. If one fails, the step ends and the old file is
unchanged. (Dagster 1.13 records the materialization of an asset even if a blocking check inside it fails: readers would
already have the file.) The other checks warn.
"""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg
import msgspec

from scoring.errors import ServingError, listed
from serving_assets.assets.display import markdown_table

ROWS = "rows_equal_request"
COLUMNS = "columns_match_signature"
FINITE = "predictions_finite"
NULLS = "null_features"
STALE = "stale_features"
FRESH = "feature_source_fresh"
DRIFT = "prediction_drift"
BASELINE = "drift_from_baseline"

DESCRIPTIONS = {
    ROWS: "The file has as many rows as the request. Blocking: if it fails, nothing is published.",
    COLUMNS: "The file has all inputs of the model's signature, with their types. Blocking: if it fails, nothing is "
    "published.",
    FINITE: "The model returns a value for each row with complete features, and no number is NaN or infinite. "
    "Blocking: if it fails, nothing is published.",
    NULLS: "No feature is missing in more than SERVING_MAX_NULL_RATE of the rows.",
    STALE: "No feature is past its view's time to live in more than SERVING_MAX_STALE_RATE of the rows.",
    FRESH: "The newest event of each feature view's source is not older than SERVING_MAX_SOURCE_AGE_S, or than the "
    "view's time to live.",
    DRIFT: "The predictions are distributed as in the output that this one replaces, or in the latest one, by the "
    "measures and settings of drift_from_baseline.",
    BASELINE: "Features and outputs are distributed as in training, or else as on the first day of the prediction log: "
    "the population stability index is at most SERVING_MAX_FEATURE_DRIFT or SERVING_MAX_PREDICTION_DRIFT, nulls "
    "increased by at most SERVING_MAX_NULL_INCREASE, and at most SERVING_MAX_NEW_CATEGORIES are new categories.",
}
BLOCKING = frozenset({ROWS, COLUMNS, FINITE})
OF_INPUT = (ROWS, COLUMNS, NULLS, STALE, FRESH, BASELINE)
OF_OUTPUT = (ROWS, COLUMNS, FINITE, DRIFT, BASELINE)
# Requests listed in a check's description and in its table. A run that a sensor requests has at most 250.
MAX_LISTED, MAX_ROWS = 5, 250


class Finding(msgspec.Struct, frozen=True):
    """What one check found in one request."""

    check: str
    passed: bool
    summary: str
    """The measured values, in one line."""


class NotPublished(ServingError):
    """A blocking check failed. The old file is unchanged."""

    def __init__(self, file: str, findings: Sequence[Finding]) -> None:
        failed = "; ".join(f"{finding.check}: {finding.summary}" for finding in findings)
        super().__init__(
            f"{file} was not published because a blocking check failed; the old file is unchanged: {failed}"
        )


def specs(asset: str, checks: Sequence[str]) -> list[dg.AssetCheckSpec]:
    """Return the check specs of an asset."""
    return [
        dg.AssetCheckSpec(name, asset=asset, blocking=name in BLOCKING, description=DESCRIPTIONS[name])
        for name in checks
    ]


def stop_if_blocked(file: str, findings: Sequence[Finding]) -> None:
    """Raise if any blocking check failed.

    Raises:
        NotPublished: a blocking check failed.
    """
    failed = [finding for finding in findings if finding.check in BLOCKING and not finding.passed]
    if failed:
        raise NotPublished(file, failed)


def results(
    asset: str, checks: Sequence[str], found: Mapping[str, Sequence[Finding]], one: str = "request"
) -> Iterator[dg.AssetCheckResult]:
    """Yield one result per check for all requests of a run, or for all of `one`. Skip checks without findings.

    Args:
        asset: the asset's name.
        checks: names of its checks.
        found: request → its findings.
    """
    for name in checks:
        of_requests = {key: finding for key, each in found.items() for finding in each if finding.check == name}
        failed = {key: finding for key, finding in of_requests.items() if not finding.passed}
        if not of_requests:
            continue
        shown = list((failed | of_requests).items())[:MAX_ROWS]
        rows = [
            {one: key, "result": "passed" if finding.passed else "failed", "found": finding.summary}
            for key, finding in shown
        ]
        summary = _summary(of_requests, failed, one)
        yield dg.AssetCheckResult(
            passed=not failed,
            asset_key=asset,  # without it, Dagster 1.13 runs two queries to find the check's asset
            check_name=name,
            severity=dg.AssetCheckSeverity.ERROR if name in BLOCKING else dg.AssetCheckSeverity.WARN,
            description=summary,
            metadata={
                "summary": summary,  # a run's log displays the metadata but not the description
                f"{one}s": len(of_requests),
                "failed": len(failed),
                "found": dg.MetadataValue.md(markdown_table([one, "result", "found"], rows, cell=300)),
            },
        )


def _summary(found: Mapping[str, Finding], failed: Mapping[str, Finding], one: str) -> str:
    if len(found) == 1:
        return next(iter(found.values())).summary
    named = [f"{key}: {finding.summary}" for key, finding in (failed or found).items()]
    passed = f"passed in {len(found) - len(failed)} of {len(found)} {one}s"
    return f"{f'failed in {len(failed)}, ' if failed else ''}{passed}. {listed(named, MAX_LISTED, '; ')}"
