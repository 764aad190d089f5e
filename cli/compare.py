"""`model-serving compare`: how the predictions of two versions differ."""

import contextlib

import click

from cli.configuration import settings_options
from cli.display import json_option, print_json, print_table, progress
from cli.request_file import check_request, read_request
from cli.score import score_version
from cli.stores import open_stores

EPILOG = """
\b
Example:
  model-serving compare 1 2 day1.csv
"""


@click.command(epilog=EPILOG, short_help="Print how the predictions of two versions differ.")
@click.argument("version", type=click.IntRange(1), metavar="N")
@click.argument("other", type=click.IntRange(1), metavar="M")
@click.argument("file")
@settings_options
@json_option
def compare(version: int, other: int, file: str, as_json: bool) -> None:
    """Score FILE with versions N and M, and print how their predictions differ.

    The differences are those of M from N. Nothing is written.
    """
    source = check_request(file)
    with progress() as shown, contextlib.ExitStack() as stack:
        stores = open_stores(shown)
        from scoring.batch.manifest import output_parts
        from scoring.files.atomic import scratch_folder
        from scoring.files.parquet import ParquetFiles
        from scoring.monitoring.comparison import compare_outputs

        request = stack.enter_context(read_request(source))
        results = []
        for number in (version, other):
            scratch = stack.enter_context(scratch_folder())
            result, manifest = score_version(stores, number, lambda _: request, scratch, shown)
            table = stack.enter_context(ParquetFiles(output_parts(result)))
            results.append((manifest.origin.model, table, manifest.outcome.output_names))
        compared = compare_outputs(*results)
        outputs, labels = compared.outputs(), compared.changed_labels()
    if as_json:
        found = {"summary": compared.summary(), "rows": compared.rows, "outputs": outputs}
        print_json(found | {"statistics": compared.statistics(), "changed_labels": labels})
        return
    click.echo(compared.summary())
    for columns, rows in compared.tables().values():
        print_table(columns, [[row.get(column) for column in columns] for row in rows])
