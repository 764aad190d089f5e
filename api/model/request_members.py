"""The members that a request in JSON has for its columns."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

REQUEST_ID = "request_id"
ENTITY_ROWS = "entity_rows"
TOP = "top"
OVERRIDES = "overrides"
# Members of a request that are not columns.
MEMBERS = {REQUEST_ID, ENTITY_ROWS, TOP, OVERRIDES}


class RequestMembers:
    """The names of the members: `entity_rows`, or a list or a single value for each column."""

    def __init__(self, columns: Collection[str]) -> None:
        self._columns = columns
        taken = MEMBERS | set(columns)
        self.lists = {name: f"{name}s" for name in columns if f"{name}s" not in taken}
        """Column → the member that lists its values."""
        self.singles = [name for name in columns if name not in MEMBERS and len(columns) > 1]
        """Columns with a member of their own name, for one value for all entities."""
        if not self.lists or not set(columns) <= {*self.lists, *self.singles}:
            self.lists, self.singles = {}, []
        self.only_lists = bool(self.lists) and not self.singles
        """Whether there is only one column, and its values may be a list."""

    def of_columns(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Return the members of a request with these columns: as few values as possible."""
        lists = {name for name, values in columns.items() if name not in self.singles or len(set(values)) > 1}
        lists = lists or {next(iter(self.lists), "")}
        if lists <= self.lists.keys():
            return dict(
                (self.lists[name], columns[name]) if name in lists else (name, columns[name][0])
                for name in self._columns
            )
        return {ENTITY_ROWS: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}

    def complete(self, schema: dict[str, Any]) -> None:
        """Add what msgspec can't express to its JSON Schema of a request: which members exclude or need each other.

        That lists have the same length can't be expressed.
        """
        if not self.lists:
            return
        lists, rows = [{"required": [name]} for name in self.lists.values()], {"required": [ENTITY_ROWS]}
        choices: list[dict[str, Any]] = [*lists, rows]
        if not self.only_lists:
            members = {"anyOf": [*lists, *({"required": [name]} for name in self.singles)]}
            each = [{"oneOf": [{"required": [member]} for member in self._of(name)]} for name in self._columns]
            choices = [rows | {"not": members}, {"allOf": [*each, {"anyOf": lists}], "not": rows}]
        schema["allOf"] = [{"oneOf": choices}]  # generators of clients make no class of a schema with oneOf itself

    def _of(self, column: str) -> list[str]:
        """Return the members that may have this column."""
        return [
            *([column] if column in self.singles else []),
            *([self.lists[column]] if column in self.lists else []),
        ]

    def describe(self) -> str:
        """Return the members that a request has for its columns, as part of a sentence."""
        rows = f"`{ENTITY_ROWS}` (a list of objects with {listing(self._columns)})"
        if not self.lists:
            return rows
        if self.only_lists:
            return f"either `{next(iter(self.lists.values()))}` (a list of keys) or {rows}"
        columns = []
        for name in self._columns:
            columns.append(" or ".join(f"`{member}`" for member in self._of(name)))
            if name not in self.lists:
                columns[-1] += f" (no list, because `{name}s` is another member)"
        return f"either {', '.join(columns)} (one value for all entities, or a list; at least one list) or {rows}"

    def problem(self, lists: Mapping[str, list[Any]], singles: Mapping[str, Any], *, rows_given: bool) -> str:
        """Return what is wrong with a request that has these columns as members: its first problem."""
        for name in self._columns:
            if name in lists and name in singles:
                return f"Object contains both `{name}` and `{self.lists[name]}`"
        given = [*singles, *(self.lists[name] for name in lists)]
        if rows_given:
            return f"Object contains both `{given[0]}` and `{ENTITY_ROWS}`"
        all_lists = listing(self.lists.values())
        if not given:
            return f"Object contains neither {all_lists} nor `{ENTITY_ROWS}`"
        for name in self._columns:
            if name not in lists and name not in singles:
                return f"Object contains no {' or '.join(f'`{member}`' for member in self._of(name))}"
        if not lists:
            return f"Object contains no list ({all_lists})"
        sizes = {self.lists[name]: len(values) for name, values in lists.items()}
        first, other = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        return f"`{first}` has {sizes[first]} values, and `{other}` has {sizes[other]}"


def listing(names: Iterable[str]) -> str:
    """Return names as Markdown code, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)
