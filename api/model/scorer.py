"""Scores entity rows with one model version.

Its methods block and are called in threads, with two exceptions: the event loop calls `send`, and if that has sent a
request, it also calls `vectors` and `score`, which then take microseconds.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from scoring.arrow.signature import NEUTRAL
from scoring.errors import PredictionFailed
from scoring.features.model_features import ModelFeatures
from scoring.models.outputs import Outputs
from scoring.models.registry import ModelVersion
from scoring.monitoring.drift import Baseline
from scoring.monitoring.prediction_log import feast_log_schema
from scoring.online.empty_views import EmptyViews
from scoring.online.lookup import OnlineVectors, fastest_lookup, read_online_vectors, read_rows, vectors_of
from scoring.online.number_inputs import number_inputs
from scoring.online.reading import EntityRows, Sent, StoreRead
from scoring.online.stored_keys import stored_keys
from scoring.predict import Policy, Scores, score, scores_of
from scoring.serving import ServingModel

if TYPE_CHECKING:
    from feast import FeatureStore


class RowScores(msgspec.Struct, frozen=True):
    """The scores of one request's n entities, in its order."""

    outputs: list[list[Any]]
    """(n_outputs, n), as in `Model.outputs`. None where the entity was not scored; numbers are finite."""
    reasons: list[str | None]
    """(n,). As in `Scores.reasons`."""

    @property
    def complete(self) -> bool:
        """Whether each entity has a score, from known features."""
        # An entity without a score has a reason. To search the outputs, each would be compared with None.
        return self.reasons.count(None) == len(self.reasons)


class Scorer(Protocol):
    """The interface of a model version to the API. Safe to call from several threads."""

    @property
    def version(self) -> ModelVersion:
        """The model version."""

    @property
    def features(self) -> ModelFeatures:
        """Its link to the feature store."""

    @property
    def outputs(self) -> Outputs:
        """Its outputs."""

    @property
    def baseline(self) -> Baseline | None:
        """What its features and outputs were in training; None without a baseline."""

    @property
    def proven(self) -> bool:
        """Whether it has predicted a row that was not made up: a golden row, or a row of a request."""

    @property
    def empty_views(self) -> Sequence[str]:
        """Its feature views of which the online store has no row, as far as is known."""

    @property
    def mergeable(self) -> bool:
        """Whether the rows that are looked up and scored together do not affect each other's scores, to the bit."""

    def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
        """Return the feature vectors of n entity rows, given as column → n values, in their order.

        Raises:
            EntityRowsError: the rows can't be looked up.
            FeatureStoreError: the online store failed.
        """

    def send(self, entity_rows: EntityRows) -> Sent | None:
        """Request the features of n entity rows without blocking.

        None if that is impossible now, or unless `score` always takes microseconds, so that the event loop can call it.
        """

    def vectors(self, entity_rows: EntityRows, read: StoreRead, now: datetime) -> OnlineVectors:
        """Return the feature vectors of entity rows from what was read for them, without blocking.

        Raises:
            Exception: any of those of `look_up`.
        """

    def score(self, entity_rows: EntityRows, online: OnlineVectors) -> Scores | RowScores:
        """Return the scores of the entity rows that `online` was looked up for.

        Raises:
            FeaturesRejected: the policy is `reject`, and a row is incomplete.
            PredictionFailed: see `scoring.predict.score`. The result of a model that fails on some rows, or on all, has
                the reason `model_failed` for them.
        """

    @property
    def input_example(self) -> pa.Table | None:
        """A row of the version's input example, in signature order and types; None or empty without one."""

    def stored_keys(self) -> EntityRows | None:
        """Return join keys of entities in the online store, for an example; None if none are known. Raises nothing."""

    def log_schema(self) -> pa.Schema:
        """Return the columns of the prediction log that Feast defines (`feast_log_schema`)."""

    def check_store(self) -> None:
        """Look up one entity, which need not exist.

        Raises:
            FeatureStoreError: the online store failed.
        """

    def close(self) -> None:
        """End its processes, if it has any. Called when it no longer serves; requests may still use it."""


class OnlineScorer:
    """A `Scorer` on a Feast online store."""

    def __init__(
        self,
        serving: ServingModel,
        store: "FeatureStore",
        policy: Policy,
        *,
        independent_rows: bool,
        proven: bool = True,
        search_s: float = math.inf,
        input_example: pa.Table | None = None,
    ) -> None:
        """Prepare the lookup.

        Args:
            serving: a loaded version.
            store: Feast's store, with frozen definitions.
            policy: what to do with rows that can't be scored.
            independent_rows: whether golden rows showed that a row's prediction does not depend on the other rows.
            proven: whether it has predicted golden rows.
            search_s: time limit, in seconds, of a search for rows on which the model raises.
            input_example: a row of the version's input example, if it has any.
        """
        self._store = store
        self.model = serving.model
        self.features = serving.features
        self._lookup = msgspec.structs.replace(
            fastest_lookup(store, serving.features), numbers=number_inputs(serving.features, serving.model)
        )
        self._empty = EmptyViews(store, serving.features)
        self._policy = policy
        self._search_s = search_s
        self.independent_rows = independent_rows
        self.proven = proven
        self.input_example = input_example
        self.baseline: Baseline | None = None
        # The function of an on-demand view gets all rows that are looked up together, and may compare them.
        self.mergeable = independent_rows and not any(feature.on_demand for feature in serving.features.features)
        self._quick = self.mergeable and serving.model.quick
        self.lately_scored: EntityRows | None = None
        """The last request with an entity that had all features. It provides golden rows for the next version."""

    @property
    def version(self) -> ModelVersion:
        """See `Scorer.version`."""
        return self.model.version

    @property
    def outputs(self) -> Outputs:
        """See `Scorer.outputs`."""
        return self.model.outputs

    @property
    def empty_views(self) -> Sequence[str]:
        """See `Scorer.empty_views`."""
        return self._empty.names

    def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
        """See `Scorer.look_up`."""
        return self._found(read_online_vectors(self._lookup, self.features, entity_rows, now))

    def send(self, entity_rows: EntityRows) -> Sent | None:
        """See `Scorer.send`."""
        return self._lookup.stored.send(entity_rows) if self._quick else None

    def vectors(self, entity_rows: EntityRows, read: StoreRead, now: datetime) -> OnlineVectors:
        """See `Scorer.vectors`."""
        return self._found(vectors_of(self._lookup, self.features, read, entity_rows, now.timestamp()))

    def _found(self, online: OnlineVectors) -> OnlineVectors:
        if self._empty.names and online.oldest_s is not None:
            self._empty.row_found()
        return online

    def score(self, entity_rows: EntityRows, online: OnlineVectors) -> Scores | RowScores:
        """See `Scorer.score`."""
        if online.reasons.null_count:
            self.lately_scored = entity_rows
        scores = None if online.array is None else self._score_array(online.array, online.reasons)
        if scores is None:
            scores = self._score_vectors(entity_rows, online)
        if not self.proven:
            self.proven = isinstance(scores, RowScores) or scores.predicted > 0
        return scores

    def _score_array(self, array: np.ndarray, reasons: pa.Array) -> Scores | RowScores | None:
        """Return the scores of complete rows; None if the model raised, so that `score` finds out on which rows."""
        rows = len(reasons)
        try:
            returned = self.model.call_with(array, rows, complete=True)
        except PredictionFailed as error:
            if error.transient:
                raise
            return None
        numbers = self.outputs.numbers(returned, rows, len(array))
        if numbers is not None:
            return RowScores(numbers, [None] * rows)
        return scores_of(self.outputs.table(str(self.version), returned, rows, len(array)), reasons)

    def _score_vectors(self, entity_rows: EntityRows, online: OnlineVectors) -> Scores:
        keys = [(key.name, entity_rows[key.name]) for key in self.features.join_keys]
        return score(
            self.model,
            online.vectors,
            online.reasons,
            self._policy,
            lambda row: ", ".join(f"{name} {values[row]}" for name, values in keys),
            self._search_s,
        )

    def stored_keys(self) -> EntityRows | None:
        """See `Scorer.stored_keys`."""
        return stored_keys(self._store, self._lookup, self.features)

    def log_schema(self) -> pa.Schema:
        """See `Scorer.log_schema`."""
        return feast_log_schema(self._store, self.features)

    def check_store(self) -> None:
        """See `Scorer.check_store`."""
        row = {name: [NEUTRAL.get(dtype, 0)] for name, dtype in self.features.request_columns.items()}
        read_rows(self._lookup.stored, row)
        self._empty.search_again()

    def close(self) -> None:
        """See `Scorer.close`."""
