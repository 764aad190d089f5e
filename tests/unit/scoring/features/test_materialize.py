"""A feature view that can't be materialized, and an online store that does not answer."""

import datetime as dt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from scoring.errors import NotMaterialized
from scoring.features.materialize import materialize_online_store

NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)


class Store:
    """Stands in for a Feast store over these views: name → what materializing it raises."""

    def __init__(self, folder: Path, views: dict[str, Exception | None]) -> None:
        self.repo_path, self.provider = folder, object()
        self.config = SimpleNamespace(online_store=object())
        self.materialized: list[str] = []
        self._views = views

    def _get_feature_views_to_materialize(self, names: None) -> list[Any]:
        return [SimpleNamespace(name=name, mode="spark" if name == "live" else None, ttl=None) for name in self._views]

    def materialize_incremental(self, until: dt.datetime, feature_views: list[str]) -> None:
        (name,) = feature_views
        error = self._views[name]
        if error is not None:
            raise error
        self.materialized.append(name)


def failure(store: Store) -> str:
    with pytest.raises(NotMaterialized) as caught:
        materialize_online_store(store, NOW)  # type: ignore[arg-type]
    return str(caught.value).removeprefix("The feature store failed while materializing the online store: ")


def test_each_view_that_fails_is_named_and_all_others_are_materialized(tmp_path: Path) -> None:
    no_spark = AttributeError("'DataFrame' object has no attribute 'withColumn'")
    store = Store(tmp_path, {"live": no_spark, "a": None, "old": ValueError("first\nsecond"), "z": None})
    assert failure(store) == (
        "Feature view 'live': its mode is spark, and feature_store.yaml names no Spark batch_engine: name one, or set "
        "online=False. Feature view 'old': first."
    )
    assert store.materialized == ["a", "z"]
    store = Store(tmp_path, {"u": ValueError('Value type not supported for feast feature store: uuid_val: "a0"')})
    assert failure(store).endswith(
        "'u': its join key is declared UUID, which Feast (0.67) can't write to an online store: declare it String."
    )


def test_after_an_outage_the_other_views_are_not_tried(tmp_path: Path) -> None:
    store = Store(tmp_path, {"a": None, "b": RedisConnectionError("refused"), "c": None})
    assert failure(store) == (
        "Feature view 'b': the online store did not respond (refused): check that it is running, and check its "
        "address, password and ssl= in feature_store.yaml. Feature view 'c': skipped after that failure."
    )
    assert store.materialized == ["a"]
