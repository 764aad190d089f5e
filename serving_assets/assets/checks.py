"""The asset checks of a batch request: what each looks at, and how Dagit shows what it found.

The blocking ones look at the finished file before it is published: Dagster records the materialization of an asset also
where a blocking check inside it fails (1.13), and readers of the file would have it already. One that fails therefore
ends the step, and the old file stays. The others warn.
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
    ROWS: "As many rows as the request. Blocking: else nothing is published.",
    COLUMNS: "All inputs of the model's signature, with its types. Blocking: else nothing is published.",
    FINITE: "The model gives a finite number for each row that has its features. Blocking: else nothing is published.",
    NULLS: "No feature is missing in more than SERVING_MAX_NULL_RATE of the rows.",
    STALE: "No feature is past its view's time to live in more than SERVING_MAX_STALE_RATE of the rows.",
    FRESH: "The newest event of each feature view's source is not older than SERVING_MAX_SOURCE_AGE_S, or the view's "
    "time to live.",
    DRIFT: "The predictions are distributed as in the output that this one replaces, or else in the one before: "
    "population stability index up to SERVING_MAX_PREDICTION_DRIFT.",
}
BLOCKING = frozenset({ROWS, COLUMNS, FINITE})
OF_INPUT = (ROWS, COLUMNS, NULLS, STALE, FRESH)
OF_OUTPUT = (ROWS, COLUMNS, FINITE, DRIFT)
# In the line that Dagit shows of a check, and in the table below it: there, all that a sensor's run can have.
TOLD, SHOWN = 5, 250


class Finding(msgspec.Struct, frozen=True):
    """What one check found in one request."""

    check: str
    passed: bool
    told: str
    """One line: what differs, or by how much not."""


class NotPublished(ServingError):
    """A blocking check failed: the old file stays as it was."""

    def __init__(self, file: str, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        told = "; ".join(f"{finding.check}: {finding.told}" for finding in findings)
        super().__init__(f"{file} was not published, and the old one stays, because of a blocking check: {told}")


def specs(asset: str, checks: Sequence[str]) -> list[dg.AssetCheckSpec]:
    """The checks of one asset, as Dagster wants them declared."""
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
    """One result a check, over all requests of a run; none for a check that no request came to.

    Args:
        asset: which asset's.
        checks: names of the asset's checks.
        found: request → what was found in it.
    """
    for name in checks:
        of_requests = {key: finding for key, each in found.items() for finding in each if finding.check == name}
        failed = {key: finding for key, finding in of_requests.items() if not finding.passed}
        if not of_requests:
            continue
        shown = list((failed | of_requests).items())[:SHOWN]
        rows = [
            {"request": key, "result": "passed" if finding.passed else "failed", "found": finding.told}
            for key, finding in shown
        ]
        told = _told(of_requests, failed)
        yield dg.AssetCheckResult(
            passed=not failed,
            asset_key=asset,  # Dagster (1.13) looks for the check's asset by two queries where it is not named
            check_name=name,
            severity=dg.AssetCheckSeverity.ERROR if name in BLOCKING else dg.AssetCheckSeverity.WARN,
            description=told,
            metadata={
                "told": told,  # a run's log shows metadata, and no description
                "requests": len(of_requests),
                "failed": len(failed),
                "found": dg.MetadataValue.md(markdown_table(["request", "result", "found"], rows, cell=300)),
            },
        )


def _told(found: Mapping[str, Finding], failed: Mapping[str, Finding]) -> str:
    if len(found) == 1:
        return next(iter(found.values())).told
    named = [f"{key}: {finding.told}" for key, finding in list((failed or found).items())[:TOLD]]
    more = f"; and {len(failed or found) - TOLD} more" if len(failed or found) > TOLD else ""
    passed = f"passed in {len(found) - len(failed)} of {len(found)} requests"
    return f"{f'failed in {len(failed)}, ' if failed else ''}{passed}. {'; '.join(named)}{more}"
