"""The optional asset below batch_output: a Delta table with the rows of all requests."""

import dagster as dg

from scoring.batch.scores_table import TABLE_VARIABLE, ScoresTable
from serving_assets.assets.batch_assets import batch_output, content_version
from serving_assets.assets.failures import failing_in_one_line, unset_in_run
from serving_assets.assets.problems import RequestProblems
from serving_assets.records.requests import request_asset, result_folder
from serving_assets.resources import Serving


@request_asset(
    deps=[batch_output],
    kinds={"deltalake"},
    description="The rows of batch_output in one Delta table for all requests, with the column `batch_request`. One "
    "commit replaces the rows of one request; the same rows again make none. In the graph only if "
    f"{TABLE_VARIABLE} is set.",
)
def scores_table(context: dg.AssetExecutionContext, serving: dg.ResourceParam[Serving]) -> dg.MaterializeResult[None]:
    """Write the output of each of this run's partitions into the table."""
    written = []
    with failing_in_one_line():
        settings = serving.settings
        problems = RequestProblems(context, settings.batch_requests)
        if settings.scores_table is None:
            raise unset_in_run(TABLE_VARIABLE)
        table = ScoresTable(settings.scores_table)
        for key in context.partition_keys:
            with problems.of(key):
                rows = table.write(key, result_folder(settings.artifacts, key))
                written.append(rows.manifest.batch_output)
                metadata = {
                    "dagster/uri": dg.MetadataValue.path(str(table.place)),
                    "dagster/row_count": dg.MetadataValue.int(rows.manifest.outcome.rows),
                    "table_version": dg.MetadataValue.int(rows.version),
                    "committed": dg.MetadataValue.bool(rows.committed),
                    "model": dg.MetadataValue.text(rows.manifest.origin.model),
                    "content_sha256": dg.MetadataValue.text(rows.manifest.batch_output.sha256),
                }
                context.add_asset_metadata(metadata, partition_key=key)
        problems.fail()
    return dg.MaterializeResult(data_version=content_version(written))
