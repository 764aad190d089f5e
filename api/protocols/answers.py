"""The bodies of the 200 responses to POST /inference and POST /scores: their types, and how they are built from scores.

The OpenAPI document is generated from the same types. Independent of HTTP requests and headers.
"""

import functools
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api.errors import NothingScored, NotRanked
from api.model.model_slot import Served
from api.model.request_schema import EntityRequest, RequestSchema
from api.model.request_types import entity_fields
from api.model.scorer import RowScores
from scoring.models.outputs import Outputs, OutputType
from scoring.predict import IMPUTED
from scoring.settings import MissingFeaturesPolicy

# The JSON type of an output.
TYPES: dict[OutputType, Any] = {"double": float, "int64": int, "bool": bool, "string": str}

REASON_DESCRIPTION = (
    "`not_found`: the online store has no row for the entity. `stale`: its row is past the feature view's time to "
    "live. `null_feature`: a feature is null. `not_finite`: an output is NaN, infinite or None. "
    "`model_failed`: the model raised for the entity."
)
Reason = Annotated[str, Meta(description=REASON_DESCRIPTION)]


class Model(msgspec.Struct, frozen=True):
    """The model version that produced the response."""

    name: str
    version: int


class AnswerSchema:
    """The response types for one request schema. Their fields depend on its join keys and on the model's outputs."""

    def __init__(self, schema: RequestSchema | None, policy: MissingFeaturesPolicy, outputs: Outputs) -> None:
        """Define the types.

        Args:
            schema: the request schema. None for a generic one, for the OpenAPI document.
            policy: for missing features; `impute` adds the member `imputed`.
            outputs: the model's outputs.
        """
        self._imputes = policy == "impute"
        self._outputs = outputs
        self._values = _values_type(outputs)
        rank_type: Any = float if outputs.rank_by is None else TYPES[outputs.columns[outputs.rank_by].type]
        score: Any = TYPES[outputs.columns[0].type]
        of_entity = ("score", score | None) if outputs.single else ("outputs", self._values | None)
        self.prediction: Any = score | None if outputs.single else _values_type(outputs, "Prediction", nullable=True)
        """The type of a prediction in MLflow's protocol. Its members are null for a row without several outputs."""
        keys, names = entity_fields(schema.keys if schema else None)
        only = keys[0][1] if len(keys) == 1 else None
        self.entity = msgspec.defstruct("Entity", keys, rename=names, frozen=True)
        self.excluded = msgspec.defstruct("Excluded", [*keys, ("reason", Reason)], rename=names, frozen=True)
        self.entity_score = msgspec.defstruct(
            "EntityScore", [*keys, of_entity, ("reason", Reason | None)], rename=names, frozen=True
        )
        self.ranked = msgspec.defstruct(
            "Ranked", [*keys, (of_entity[0], rank_type if outputs.single else self._values)], rename=names, frozen=True
        )
        excluded: Any = list[self.excluded]  # type: ignore[name-defined]  # created dynamically
        ranked: Any = list[self.ranked]  # type: ignore[name-defined]  # created dynamically
        imputed = Annotated[excluded, Meta(description="Entities scored with imputed features, and why.")]
        choice = Meta(description="The entity with the highest score; ties go to the first in the request.")
        best = Meta(description="The best entities in order, as many as the request's `top` or all with a score.")
        self.inference_answer = msgspec.defstruct(
            "Inference",
            [
                ("request_id", str),
                ("prediction", Annotated[only or self.entity, choice]),
                ("score", Annotated[rank_type, Meta(description="Its predicted value.")]),
                *([] if outputs.single else [("outputs", self._values)]),
                ("model", Model),
                ("excluded", Annotated[excluded, Meta(description="Entities without a score, and why.")]),
                *([("imputed", imputed)] if self._imputes else []),
                ("error", type(None)),
                ("top", Annotated[ranked, best] | UnsetType, UNSET),
            ],
            frozen=True,
        )
        self.scores_answer = msgspec.defstruct(
            "Scores",
            [
                ("request_id", str),
                ("model", Model),
                ("scores", list[self.entity_score]),  # type: ignore[name-defined]  # created dynamically
                *([("imputed", imputed)] if self._imputes else []),
            ],
            frozen=True,
        )

    def inference(self, served: Served, request: EntityRequest, scores: RowScores) -> msgspec.Struct:
        """Return the entity with the highest prediction; ties go to the first in the request.

        Raises:
            NotRanked: the model has no number to rank by.
            NothingScored: no entity has a prediction.
        """
        if self._outputs.rank_by is None:
            raise NotRanked(self._outputs)
        values, keys = scores.outputs[self._outputs.rank_by], served.schema.key_columns(request)
        excluded, known = [], values
        if not scores.complete:
            rows = zip(values, *keys, scores.reasons, strict=True)
            excluded = [self.excluded(*entity) for value, *entity in rows if value is None]
            known = [value for value in values if value is not None]
            if not known:
                raise NothingScored(excluded)
        highest = max(known)
        best = values.index(highest)
        choice = keys[0][best] if len(keys) == 1 else self.entity(*(column[best] for column in keys))
        outputs = [] if self._outputs.single else [self._values(*(column[best] for column in scores.outputs))]
        imputed = self._imputed(keys, scores.reasons)
        top = UNSET if request.top is None else self._top(request.top, values, keys, scores.outputs)
        return self.inference_answer(
            request.request_id, choice, highest, *outputs, model_of(served), excluded, *imputed, None, top
        )

    def scores(self, served: Served, request: EntityRequest, scores: RowScores) -> msgspec.Struct:
        """Return the outputs of each entity, in request order: null, with a reason, for an entity without them."""
        keys, reasons, values = served.schema.key_columns(request), scores.reasons, scores.outputs[0]
        if self._imputes:  # the reasons of entities with a score are in `imputed`
            reasons = [None if value is not None else reason for value, reason in zip(values, reasons, strict=True)]
        rows = self.entity_scores(keys, scores.outputs, reasons)
        return self.scores_answer(request.request_id, model_of(served), rows, *self._imputed(keys, scores.reasons))

    def entity_scores(
        self, keys: list[list[Any]], outputs: list[list[Any]], reasons: list[str | None]
    ) -> list[msgspec.Struct]:
        """Return the outputs of each entity. The arguments are columns, in request order."""
        values = outputs[0]
        if not self._outputs.single:
            values = [None if row[0] is None else self._values(*row) for row in zip(*outputs, strict=True)]
        return list(map(self.entity_score, *keys, values, reasons))

    def _top(
        self, count: int, ranks: list[Any], keys: list[list[Any]], outputs: list[list[Any]]
    ) -> list[msgspec.Struct]:
        """Return the entities with the highest ranks in order; ties are in request order."""
        scored = [place for place, rank in enumerate(ranks) if rank is not None]
        best = sorted(scored, key=ranks.__getitem__, reverse=True)[:count]
        columns = [[column[place] for place in best] for column in (*keys, *outputs)]
        if not self._outputs.single:
            columns[len(keys) :] = [list(map(self._values, *columns[len(keys) :]))]
        return list(map(self.ranked, *columns))

    def _imputed(self, keys: list[list[Any]], reasons: list[str | None]) -> list[list[msgspec.Struct]]:
        """Return the members that the policy `impute` adds: one, or none under another policy."""
        if not self._imputes:
            return []
        rows = zip(*keys, reasons, strict=True)
        imputed = [(entity, reason) for *entity, reason in rows if reason is not None and reason.startswith(IMPUTED)]
        return [[self.excluded(*entity, reason.removeprefix(IMPUTED)) for entity, reason in imputed]]


def _values_type(outputs: Outputs, name: str = "Outputs", *, nullable: bool = False) -> Any:
    """Define the object with all outputs of an entity. Fields are renamed, because a name may be any string."""
    fields = [f"output_{place}" for place in range(len(outputs.columns))]
    values = [TYPES[column.type] | None if nullable else TYPES[column.type] for column in outputs.columns]
    types = list(zip(fields, values, strict=True))
    names = dict(zip(fields, (column.name for column in outputs.columns), strict=True))
    return msgspec.defstruct(name, types, rename=names, frozen=True)


def model_of(served: Served) -> Model:
    """Return the model version of an answer."""
    return Model(served.scorer.version.name, served.scorer.version.version)


# Two, because requests to the previous version may end after a swap.
answer_schema = functools.lru_cache(maxsize=2)(AnswerSchema)
"""Cached constructor of `AnswerSchema`."""
