"""Without a feature service, each input of a model is found in exactly one feature view."""

import datetime as dt
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bytes, Float32, Float64, from_value_type

from scoring.arrow.signature import ModelInput, Signature
from scoring.errors import MissingFeatures, ModelRefused
from scoring.features.feature_service import link_features
from scoring.features.model_features import ModelFeatures

NAME_IT = r"name it one of place__rate, stats__rate, or define a FeatureService with one of them and name that in its "
SHOP = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
OWNER = Entity(name="owner", join_keys=["owner_id"], value_type=ValueType.STRING)


def view(name: str, entity: Entity = SHOP, **features: Any) -> FeatureView:
    key = Field(name=entity.join_key, dtype=from_value_type(entity.value_type))
    schema = [key, *(Field(name=each, dtype=dtype) for each, dtype in features.items())]
    source = FileSource(name=name, path=f"{name}.parquet", timestamp_field="event_timestamp")
    return FeatureView(name=name, entities=[entity], ttl=dt.timedelta(hours=1), schema=schema, source=source)


STATS = view("stats", rate=Float32, orders=Float64)
PLACE = view("place", rate=Float64, photo=Bytes)
PERSON = view("person", OWNER, age=Float64)


@on_demand_feature_view(
    sources=[STATS, RequestSource(name="basket", schema=[Field(name="amount", dtype=Float64)])],
    mode="python",
    schema=[Field(name="expected", dtype=Float64)],
)
def computed(inputs: dict[str, Any]) -> dict[str, Any]:
    return {"expected": inputs["amount"]}


class Registry:
    """Stands in for a Feast registry."""

    def __init__(self, views: Sequence[Any], services: Sequence[str] = ()) -> None:
        self._views = list(views)
        self._services = [FeatureService(name=name, features=[]) for name in services]

    def list_feature_services(self, project: str, allow_cache: bool) -> list[FeatureService]:
        return self._services

    def list_all_feature_views(self, project: str, allow_cache: bool) -> list[Any]:
        return self._views


VIEWS = (STATS, PLACE, PERSON, computed)


def link(*inputs: str, views: Sequence[Any] = VIEWS, **others: Any) -> ModelFeatures:
    registry = Registry(views, others.pop("services", ()))
    signature = Signature(tuple(ModelInput(name, pa.float64()) for name in inputs))
    store: Any = SimpleNamespace(registry=registry, project="tests")
    return link_features(store, "m/1", None, signature, others.pop("request_inputs", ()))


def test_each_input_is_filled_from_the_one_view_that_has_it() -> None:
    features = link("orders", "place__rate")
    assert features.service == "stats:orders, place:rate"
    assert features.feast.service == ["place:rate", "stats:orders"]
    assert [key.name for key in features.join_keys] == ["shop_id"]  # nothing of the view of owners


def test_the_order_of_the_views_in_the_registry_does_not_matter() -> None:
    links = [link("age", "expected", "place__rate", views=views) for views in (VIEWS, VIEWS[::-1])]
    assert list(links[0].request_columns) == list(links[1].request_columns) == ["shop_id", "owner_id", "amount"]
    assert links[0].feast.service == links[1].feast.service


def test_features_that_the_model_does_not_read_are_not_read() -> None:
    features = link("orders")
    assert features.served == {"stats:orders": "orders"}
    assert [each.columns for each in features.views] == [("stats:orders",)]
    assert [field.name for field in STATS.projection.features] == ["rate", "orders"]


def test_an_on_demand_view_is_read_with_a_feature_of_each_of_its_sources() -> None:
    features = link("expected")
    assert features.service == "computed:expected"
    assert features.feast.service == ["computed:expected", "stats:rate"]
    assert features.request_inputs == ("amount",)
    assert [each.columns for each in features.views] == [("stats:rate", "stats:orders")]


def test_an_input_that_two_views_have_is_refused_with_both_and_the_remedies() -> None:
    with pytest.raises(ModelRefused, match=f"'rate' is served by several views: {NAME_IT}tag feast.feature_service"):
        link("orders", "rate")


def test_inputs_that_no_view_has_are_all_named() -> None:
    with pytest.raises(MissingFeatures, match=r"no feature view has its inputs speed, mood \(the views have age, ex"):
        link("speed", "orders", "mood")
    with pytest.raises(MissingFeatures, match=r"\(the views have nothing: run `feast apply`\)"):
        link("orders", views=())


def test_an_input_that_comes_with_the_request_needs_no_view() -> None:
    features = link("orders", "rate", request_inputs=["rate"])
    assert (features.service, features.request_inputs) == ("stats:orders", ("rate",))
    with pytest.raises(ModelRefused, match="no entity with a join key"):
        link("rate", request_inputs=["rate"])


def test_a_version_without_the_tag_is_refused_if_there_are_feature_services() -> None:
    with pytest.raises(ModelRefused, match=r"m/1 was refused: it has no tag feast.* \(the registry has churn, fraud\)"):
        link("orders", services=["fraud", "churn"])
