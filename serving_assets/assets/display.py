"""Dagit metadata: Parquet tables with a preview, and comparisons and drift as Markdown."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from scoring.arrow.text import to_string
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from scoring.monitoring.comparison import VersionComparison
from scoring.monitoring.drift import ColumnDrift

PREVIEW_ROWS = 5
CELL_CHARACTERS = 40
MOST_COLUMNS = 50


def table_metadata(table: ParquetFiles, place: Location) -> dict[str, dg.MetadataValue]:
    """Return a table's row count, schema, location and preview, under the metadata keys that Dagit displays.

    Args:
        table: the files at their current location.
        place: the location at which they will be published.
    """
    return {
        "dagster/row_count": dg.MetadataValue.int(table.rows),
        "dagster/column_schema": dg.MetadataValue.table_schema(column_schema(table.schema)),
        "dagster/uri": dg.MetadataValue.path(str(place)),
        "preview": dg.MetadataValue.md(markdown_table(table.schema.names, _preview(table.first(PREVIEW_ROWS)))),
    }


def _preview(rows: pa.Table) -> list[dict[str, Any]]:
    # Convert value by value, so that a value that Python can't represent does not block publishing.
    columns = {name: [to_string(value) for value in rows[name]] for name in rows.column_names}
    return [{name: texts[row] for name, texts in columns.items()} for row in range(rows.num_rows)]


def column_schema(schema: pa.Schema) -> dg.TableSchema:
    """Return an Arrow schema as a Dagster table schema."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(field.name, str(field.type), constraints=dg.TableColumnConstraints(nullable=field.nullable))
            for field in schema
        ]
    )


def counts_table(label: str, counts: dict[str, int]) -> dg.MetadataValue:
    """Return counts by name as a Markdown table, most frequent first."""
    rows = [{label: name, "rows": count} for name, count in sorted(counts.items(), key=lambda pair: -pair[1])]
    return dg.MetadataValue.md(markdown_table([label, "rows"], rows) if rows else "none")


def comparison_metadata(compared: VersionComparison) -> dict[str, dg.MetadataValue]:
    """Return the differences of two versions in one line, and as tables: of the outputs, and of changed labels."""
    found: dict[str, dg.MetadataValue] = {
        "compared_with": dg.MetadataValue.text(compared.earlier_version),
        "changed_predictions": dg.MetadataValue.text(compared.summary()),
    }
    return found | {name: dg.MetadataValue.md(markdown_table(*table)) for name, table in compared.tables().items()}


def drift_table(drifts: Sequence[ColumnDrift]) -> dg.MetadataValue:
    """Return the drift of columns as a Markdown table."""
    rows = [
        {
            "column": each.column,
            "PSI": None if each.psi is None else f"{each.psi:.3f}",
            "nulls": f"{each.nulls:.1%}",
            "nulls in the baseline": f"{each.nulls_before:.1%}",
            "new categories": None if each.new is None else f"{each.new:.1%} {', '.join(each.new_categories)}",
        }
        for each in drifts[:MOST_COLUMNS]
    ]
    return dg.MetadataValue.md(
        markdown_table(["column", "PSI", "nulls", "nulls in the baseline", "new categories"], rows)
    )


def markdown_table(columns: list[str], rows: list[dict[str, Any]], cell: int = CELL_CHARACTERS) -> str:
    """Return rows as a Markdown table. Truncate strings longer than `cell` characters. Nulls are empty."""
    lines = ["| " + " | ".join(_cell(name, cell) for name in columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(name), cell) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object, characters: int) -> str:
    text = "" if value is None else str(value)
    text = text.replace("\n", " ").replace("|", "\\|")
    return text if len(text) <= characters else text[: characters - 1] + "…"
