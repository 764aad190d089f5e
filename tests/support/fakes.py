"""Fakes of the dependencies of the API."""

import contextlib
import resource
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa

from api.model.loading import Target
from api.model.scorer import Scorer
from scoring.arrow.signature import ModelInput, Signature
from scoring.feast_plugins.join_keys import JoinKey
from scoring.features.model_features import ModelFeatures
from scoring.models.outputs import ONE_NUMBER, Outputs
from scoring.models.registry import ModelVersion
from scoring.monitoring.drift import Baseline
from scoring.online.lookup import OnlineVectors
from scoring.online.reading import EntityRows, Sent, StoreRead
from scoring.predict import Scores

# Returns, for each entity, its output (a tuple if there are several) or None, and its reason.
ScoreFunction = Callable[[EntityRows], list[tuple[Any, str | None]]]

DRIVER = (JoinKey("driver_id", "int64"),)


def features(
    *join_keys: JoinKey,
    request_inputs: dict[str, pa.DataType] | None = None,
    overridable: dict[str, pa.DataType] | None = None,
) -> ModelFeatures:
    """Return model features without a feature store."""
    types = (request_inputs or {}) | (overridable or {})
    inputs = tuple(ModelInput(name, dtype) for name, dtype in types.items())
    return ModelFeatures(
        service="service",
        join_keys=join_keys or DRIVER,
        features=(),
        views=(),
        request_inputs=tuple(request_inputs or {}),
        signature=Signature(inputs),
        overridable=tuple(overridable or {}),
    )


def id_as_score(entity_rows: EntityRows) -> list[tuple[float | None, str | None]]:
    """Score each entity with its first key; entities with a negative key are unknown."""
    ids = next(iter(entity_rows.values()))
    return [(None, "not_found") if key < 0 else (float(key), None) for key in ids]


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Simulate a full disk: this process and its children can't write files of more than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FakeScorer:
    """A `Scorer` that needs no model and no store."""

    def __init__(
        self,
        version: int = 1,
        *,
        link: ModelFeatures | None = None,
        function: ScoreFunction = id_as_score,
        outputs: Outputs = ONE_NUMBER,
    ) -> None:
        self.version = ModelVersion("ranker", version)
        self.features = link or features()
        self.function = function
        self.mergeable = self.proven = True
        self.outputs = outputs
        self.keys: EntityRows | None = None
        self.input_example: pa.Table | None = None
        self.baseline: Baseline | None = None
        self.empty_views: list[str] = []
        self.store_error: Exception | None = None
        self.lookup_error: Exception | None = None
        self.closed = False

    def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
        if self.lookup_error is not None:
            raise self.lookup_error
        rows = len(next(iter(entity_rows.values())))
        return OnlineVectors(pa.table({}), pa.nulls(rows, pa.string()), now.timestamp() - 60)

    def send(self, entity_rows: EntityRows) -> Sent | None:
        return None

    def vectors(self, entity_rows: EntityRows, read: StoreRead, now: datetime) -> OnlineVectors:
        return self.look_up(entity_rows, now)

    def score(self, entity_rows: EntityRows, online: OnlineVectors) -> Scores:
        rows = self.function(entity_rows)
        values = [value if isinstance(value, tuple) else (value,) * len(self.outputs.columns) for value, _ in rows]
        outputs = [dict(zip(self.outputs.names, value, strict=True)) for value in values]
        return Scores(
            pa.Table.from_pylist(outputs, self.outputs.schema), pa.array([reason for _, reason in rows], pa.string())
        )

    def stored_keys(self) -> EntityRows | None:
        return self.keys

    def log_schema(self) -> pa.Schema:
        keys = [(key.name, key.arrow_type) for key in self.features.join_keys]
        times = [("__log_timestamp", pa.timestamp("us", "UTC")), ("__log_date", pa.date32())]
        return pa.schema([*keys, *times, ("__request_id", pa.string())])

    def check_store(self) -> None:
        if self.store_error is not None:
            raise self.store_error

    def close(self) -> None:
        self.closed = True


class FakeLoader:
    """A `Loader` whose alias is moved by `point_to`; `poll_error` and `load_error` are raised while they are set."""

    def __init__(self, scorer: Scorer | None = None) -> None:
        self.poll_error: Exception | None = None
        self.load_error: Exception | None = None
        self.loads: list[int] = []
        self.may_load = threading.Event()
        self.may_load.set()
        self.point_to(scorer or FakeScorer())

    def point_to(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def poll(self) -> Target:
        if self.poll_error is not None:
            raise self.poll_error
        return Target(self.scorer.version, "definitions")

    def load(self, target: Target, current: Scorer | None) -> Scorer:
        self.loads.append(target.version.version)
        self.may_load.wait(10)
        if self.load_error is not None:
            raise self.load_error
        return self.scorer
