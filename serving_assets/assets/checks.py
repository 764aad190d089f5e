"""The asset checks of a batch request: what each examines, and how Dagit displays its findings.

The blocking checks examine the finished file before it is published: when a blocking check inside an asset fails,
Dagster records the asset's materialization nevertheless (1.13), and readers would already have the file. A blocking
check that fails therefore ends the step, and the old file stays. The others warn.
"""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg
import msgspec

from scoring.errors import ServingError
from serving_assets.assets.display import markdown_table

ROWS = "rows_equal_request"
COLUMNS = "columns_match_signature"
FINITE = "predictions_finite"
NULLS = "null_features"
STALE = "stale_features"
FRESH = "feature_source_fresh"
DRIFT = "prediction_drift"

DESCRIPTIONS = {
    ROWS: "As many rows as the request. Blocking: otherwise nothing is published.",
    COLUMNS: "All inputs of the model's signature, with its types. Blocking: otherwise nothing is published.",
    FINITE: "The model returns a finite number for each row with complete features. Blocking: otherwise nothing is "
    "published.",
    NULLS: "No feature is missing in more than SERVING_MAX_NULL_RATE of the rows.",
    STALE: "No feature is past its view's time to live in more than SERVING_MAX_STALE_RATE of the rows.",
    FRESH: "The newest event of each feature view's source is not older than SERVING_MAX_SOURCE_AGE_S, or than the "
    "view's time to live.",
    DRIFT: "The predictions are distributed as in the output that this one replaces, or in the latest one: the "
    "population stability index is at most SERVING_MAX_PREDICTION_DRIFT.",
}
BLOCKING = frozenset({ROWS, COLUMNS, FINITE})
OF_INPUT = (ROWS, COLUMNS, NULLS, STALE, FRESH)
OF_OUTPUT = (ROWS, COLUMNS, FINITE, DRIFT)
# Requests in a check's description, and in the table below it: the table holds all that a sensor's run can have.
MAX_NAMED, MAX_ROWS = 5, 250


class Finding(msgspec.Struct, frozen=True):
    """What one check found in one request."""

    check: str
    passed: bool
    summary: str
    """One line with what was measured."""


class NotPublished(ServingError):
    """A blocking check failed: the old file stays as it was."""

    def __init__(self, file: str, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        failed = "; ".join(f"{finding.check}: {finding.summary}" for finding in findings)
        super().__init__(f"{file} was not published, and the old one stays, because of a blocking check: {failed}")


def specs(asset: str, checks: Sequence[str]) -> list[dg.AssetCheckSpec]:
    """Return the declarations of one asset's checks."""
    return [
        dg.AssetCheckSpec(name, asset=asset, blocking=name in BLOCKING, description=DESCRIPTIONS[name])
        for name in checks
    ]


def stop_if_blocked(file: str, findings: Sequence[Finding]) -> None:
    """Raise if a blocking check failed.

    Raises:
        NotPublished: it lists what failed.
    """
    failed = [finding for finding in findings if finding.check in BLOCKING and not finding.passed]
    if failed:
        raise NotPublished(file, failed)


def results(asset: str, checks: Sequence[str], found: Mapping[str, Sequence[Finding]]) -> Iterator[dg.AssetCheckResult]:
    """Yield one result per check, over all requests of a run; none for a check that was not evaluated.

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
        listed = list((failed | of_requests).items())[:MAX_ROWS]
        rows = [
            {"request": key, "result": "passed" if finding.passed else "failed", "found": finding.summary}
            for key, finding in listed
        ]
        summary = _summary(of_requests, failed)
        yield dg.AssetCheckResult(
            passed=not failed,
            asset_key=asset,  # without it, Dagster (1.13) finds the check's asset by two queries
            check_name=name,
            severity=dg.AssetCheckSeverity.ERROR if name in BLOCKING else dg.AssetCheckSeverity.WARN,
            description=summary,
            metadata={
                "summary": summary,  # a run's log displays the metadata but not the description
                "requests": len(of_requests),
                "failed": len(failed),
                "found": dg.MetadataValue.md(markdown_table(["request", "result", "found"], rows, cell=300)),
            },
        )


def _summary(found: Mapping[str, Finding], failed: Mapping[str, Finding]) -> str:
    if len(found) == 1:
        return next(iter(found.values())).summary
    named = [f"{key}: {finding.summary}" for key, finding in list((failed or found).items())[:MAX_NAMED]]
    more = f"; and {len(failed or found) - MAX_NAMED} more" if len(failed or found) > MAX_NAMED else ""
    passed = f"passed in {len(found) - len(failed)} of {len(found)} requests"
    return f"{f'failed in {len(failed)}, ' if failed else ''}{passed}. {'; '.join(named)}{more}"
