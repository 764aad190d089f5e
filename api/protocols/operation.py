"""What a wire format contributes to the OpenAPI document: its operations, described next to its bodies."""

from typing import Any, NamedTuple

import msgspec

from api.model.request_schema import RequestSchema
from api.protocols.answers import AnswerSchema
from api.protocols.problems import MEDIA_TYPE, Problem

Content = dict[str, dict[str, Any]]
"""Media type → OpenAPI Media Type Object."""

REF = "#/components/schemas/{name}"
BODY_PROBLEMS = (400, 408, 413, 415, 422, 500, 503)


class Bodies:
    """The current model's bodies, and the schemas in the document."""

    def __init__(self, schema: RequestSchema | None, answers: AnswerSchema, *, real_example: bool) -> None:
        """Begin the document's schemas.

        Args:
            schema: the requests of the current model; None before the first is loaded.
            answers: the types of its responses.
            real_example: whether the example may have entity keys from the online store.
        """
        self.request_schema = schema
        self.answers = answers
        self.schemas: dict[str, dict[str, Any]] = {}
        """Name → schema: the document's `components.schemas`."""
        self.problem: Content = {MEDIA_TYPE: {"schema": self.schema(Problem)}}
        self.schema(answers.excluded)  # Problem refers to it by name
        if schema is not None:
            self.schema(schema.body_type)
            schema.members.complete(self.schemas["Request"])
            self.example = schema.examples.request(real=real_example)
            """A valid request in JSON, if there is a model."""
            self.example_columns = schema.examples.columns(real=real_example)
            """The same as columns, in the order of `schema.columns`."""

    def schema(self, type_: Any) -> dict[str, Any]:
        """Return the schema of a type. The Structs in it become references to `schemas`."""
        [schema], components = msgspec.json.schema_components((type_,), ref_template=REF)
        self.schemas |= {name: each for name, each in components.items() if name not in self.schemas}
        return schema


class Operation(NamedTuple):
    """An operation, without what all of them have in common: API key, headers, path parameters, descriptions."""

    name: str
    """Its `operationId`, from which generated clients take the names of functions."""
    tag: str
    summary: str
    answer: Content
    """The bodies of its 200 responses. JSON comes first, because generated clients decode only one media type."""
    problem: Content
    statuses: tuple[int, ...] = ()
    """Statuses of its problems, besides 401."""
    request: Content | None = None
    """The bodies of its requests; None for GET. An operation with a body scores."""
