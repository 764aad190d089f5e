"""A model's inputs are found in its feature service, or the version is refused with what is missing."""

import contextlib
import datetime as dt
import io
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoring.arrow.signature import ModelInput, Signature
from scoring.batch.join import PointInTimeJoin
from scoring.errors import (
    EntityRowsError,
    FeatureServiceNotFound,
    FeatureStoreError,
    MissingFeatures,
    ModelRefused,
    UnusableFeature,
)
from scoring.features.feature_service import link_features
from scoring.features.feature_store import apply_definitions, open_feature_store, read_definitions
from scoring.features.materialize import materialize_online_store, read_watermarks
from scoring.features.model_features import FeastObjects, ModelFeatures
from scoring.models.registry import ModelVersion
from scoring.online.lookup import OnlineVectors, fastest_lookup, read_online_vectors
from scoring.serving import link_version
from scoring.settings import Settings
from tests.support.feature_repository import open_repository, write_definitions

if TYPE_CHECKING:
    from feast import FeatureStore

DEFINITIONS = """
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.INT64)
stats = FeatureView(
    name="stats", entities=[shop], ttl=timedelta(hours=3),
    schema=[Field(name="rate", dtype=Float32), Field(name="orders", dtype=Int32), Field(name="open", dtype=Bool)],
    source=FileSource(path="data/stats.parquet", timestamp_field="event_timestamp"),
)
place = FeatureView(
    name="place", entities=[shop], ttl=timedelta(0),
    schema=[Field(name="rate", dtype=Float64), Field(name="city", dtype=String),
            Field(name="since", dtype=UnixTimestamp), Field(name="photo", dtype=Bytes)],
    source=FileSource(path="data/place.parquet", timestamp_field="event_timestamp"),
)
basket = RequestSource(name="basket", schema=[Field(name="amount", dtype=Float64)])

@on_demand_feature_view(
    sources=[stats, basket], mode="pandas",
    schema=[Field(name="expected", dtype=Float64), Field(name="filled", dtype=Float64)],
)
def computed(inputs: pd.DataFrame) -> pd.DataFrame:
    if (inputs["amount"] == 666).any():
        raise ValueError(f"unlucky: {inputs['amount'].tolist()}")
    result = pd.DataFrame()
    result["expected"] = (inputs["rate"] * inputs["amount"]).astype("float64")
    result["filled"] = inputs["orders"].fillna(0).astype("float64")
    return result

@on_demand_feature_view(
    sources=[stats, basket], mode="python", schema=[Field(name="twice", dtype=Int64)],
)
def counted(inputs: dict) -> dict:
    return {"twice": [None if each is None else 2 * each for each in inputs["orders"]]}

both = FeatureService(name="both", features=[stats, place])
on_demand = FeatureService(name="on_demand", features=[stats[["rate"]], computed])
python_mode = FeatureService(name="python_mode", features=[stats[["orders"]], counted])
hidden = FeatureService(name="hidden", features=[computed])
"""
NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
TYPES = {"double": pa.float64(), "float": pa.float32(), "int": pa.int32(), "long": pa.int64(), "string": pa.string()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> "FeatureStore":
    repo = tmp_path_factory.mktemp("shops")
    write_definitions(repo, DEFINITIONS)
    hour = dt.timedelta(hours=1)
    stats = pd.DataFrame(
        {
            "shop_id": [1, 2, 3],
            "event_timestamp": [NOW - hour, NOW - 2.99 * hour, NOW - hour],
            "rate": [0.1, 0.2, None],  # doubles in the file, declared Float32
            "orders": pd.array([1, 2, 3], "Int32"),
            "open": [True, False, True],
        }
    )
    place = pd.DataFrame(
        {"shop_id": [1, 2], "event_timestamp": NOW - 900 * hour, "rate": [1.5, 2.5], "city": ["Rome", "Köln"],
         "since": NOW - 9000 * hour + dt.timedelta(microseconds=700_000), "photo": [b"\xff", None]}
    )  # fmt: skip
    stats.to_parquet(repo / "data" / "stats.parquet", coerce_timestamps="us")
    place.to_parquet(repo / "data" / "place.parquet", coerce_timestamps="us")
    store = open_repository(repo, bulk=False)
    with contextlib.redirect_stderr(io.StringIO()):
        store.materialize(NOW - 2000 * hour, NOW)
    return store


def other_repository(store: "FeatureStore", folder: Path, definitions: str) -> "FeatureStore":
    """Other definitions over a copy of the same data."""
    write_definitions(folder, definitions)
    for file in (Path(store.repo_path) / "data").glob("*.parquet"):
        shutil.copy(file, folder / "data")
    return open_repository(folder, bulk=False)


def signature(**inputs: str) -> Signature:
    return Signature(tuple(ModelInput(name, TYPES[kind]) for name, kind in inputs.items()))


def link(
    store: "FeatureStore", service: str | None, request_inputs: tuple[str, ...] = (), **inputs: str
) -> ModelFeatures:
    return link_features(store, "m/1", service, signature(**inputs), request_inputs)


def read(store: "FeatureStore", features: ModelFeatures, now: dt.datetime = NOW, **rows: Any) -> OnlineVectors:
    return read_online_vectors(fastest_lookup(store, features), features, rows, now)


def test_order_and_types_are_the_signatures_and_values_pass_the_declared_type(store: "FeatureStore") -> None:
    features = link(store, "both", orders="double", stats__rate="double", city="string", open="long")
    # The rows of `place` are older than a month, and its time to live of 0 never ends.
    answer = read(store, features, shop_id=[2, 1])
    assert answer.vectors.schema == features.signature.schema
    narrow = [float(pd.Series([rate], dtype="float32")[0]) for rate in (0.2, 0.1)]
    assert answer.vectors.to_pydict() == {
        "orders": [2.0, 1.0], "stats__rate": narrow, "city": ["Köln", "Rome"], "open": [0, 1],
    }  # fmt: skip
    assert answer.reasons.to_pylist() == [None, None]


def test_missing_stale_and_null_features_are_told_apart(store: "FeatureStore") -> None:
    features = link(store, "both", orders="double", stats__rate="double")
    fresh = read(store, features, shop_id=[1, 2, 3, 4, 1])
    assert fresh.reasons.to_pylist() == [None, None, "null_feature", "not_found", None]
    later = read(store, features, now=NOW + dt.timedelta(minutes=5), shop_id=[1, 2, 3, 4])
    assert later.reasons.to_pylist() == [None, "stale", "null_feature", "not_found"]
    assert later.vectors["orders"].to_pylist() == [1.0, None, 3.0, None]


def test_a_link_is_sent_to_other_processes_without_feasts_objects(store: "FeatureStore") -> None:
    features = link(store, "on_demand", expected="double", rate="double")
    assert features.request_columns == {"shop_id": pa.int64(), "amount": pa.float64()}
    sent = pickle.loads(pickle.dumps(features))  # noqa: S301 - of our own making
    assert sent.feast == FeastObjects()
    assert (sent.features, sent.views, sent.request_columns) == (
        features.features, features.views, features.request_columns,
    )  # fmt: skip
    assert b"feast.feature_view" not in pickle.dumps(features)


@pytest.mark.parametrize(
    ("service", "inputs", "error", "says"),
    [
        ("both", {"rate": "double"}, ModelRefused, "'rate' is served by several views: name it one of stats__r"),
        ("both", {"place__rate": "float"}, ModelRefused, "'place__rate' is float, but feature place__rate is declared"),
        ("both", {"photo": "string"}, ModelRefused, "feature 'photo' has type Bytes, which can't be served"),
        ("hidden", {"expected": "double"}, ModelRefused, "a feature service that has one feature of 'stats'"),
        ("unknown", {"rate": "double"}, FeatureServiceNotFound, "'unknown': the registry has both, hidden, on_demand"),
    ],
)
def test_inputs_that_can_not_be_linked_are_refused_by_name(
    store: "FeatureStore", service: str, inputs: dict[str, str], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        link(store, service, **inputs)


def test_features_that_the_service_does_not_serve_are_all_named(store: "FeatureStore") -> None:
    with pytest.raises(
        MissingFeatures,
        match=r"inputs age, income \(it serves city, open.* tag serving.request_inputs or in SERVING_REQUEST_INPUTS",
    ):
        link(store, "both", age="double", orders="double", income="double")


@pytest.mark.parametrize(
    ("service", "inputs"),
    [
        ("both", {"orders": "double", "stats__rate": "double", "city": "string", "place__rate": "double"}),
        ("on_demand", {"expected": "double", "filled": "double"}),
        ("python_mode", {"twice": "double", "orders": "double"}),
    ],
)
def test_vectors_are_the_same_with_and_without_a_feature_service(
    store: "FeatureStore", service: str, inputs: dict[str, str], tmp_path: Path
) -> None:
    bare = other_repository(store, tmp_path, DEFINITIONS[: DEFINITIONS.index("both = ")])
    with contextlib.redirect_stderr(io.StringIO()):
        bare.materialize(NOW - dt.timedelta(hours=2000), NOW)
    named, found = link(store, service, **inputs), link(bare, None, **inputs)
    rows = {"shop_id": [3, 1, 4, 2], "amount": [10.0, 0.5, 1.0, None]}
    answers = [
        read(each, features, **{name: rows[name] for name in features.request_columns})
        for each, features in ((store, named), (bare, found))
    ]
    assert answers[0].reasons.to_pylist() == answers[1].reasons.to_pylist()
    assert answers[0].vectors.equals(answers[1].vectors)
    assert None in answers[0].reasons.to_pylist()
    assert found.request_columns == named.request_columns
    day = tmp_path / "day.csv"
    day.write_text(f"shop_id,event_timestamp,amount\n3,{NOW},10\n1,{NOW},0.5\n4,{NOW},1\n2,{NOW},\n")
    joins = [PointInTimeJoin(each, features, day) for each, features in ((store, named), (bare, found))]
    assert pa.concat_tables(joins[0].tables()).equals(pa.concat_tables(joins[1].tables()))


def test_a_request_time_input_comes_with_the_request(store: "FeatureStore") -> None:
    features = link(store, "both", ("amount",), amount="double", orders="double")
    assert features.request_inputs == ("amount",)
    answer = read(store, features, shop_id=[1, 2], amount=[9.5, None])
    assert answer.vectors["amount"].to_pylist() == [9.5, None]
    assert answer.reasons.to_pylist() == [None, "null_feature"]
    with pytest.raises(EntityRowsError, match="'amount': it is missing; each entity row needs shop_id, amount"):
        read(store, features, shop_id=[1])
    with pytest.raises(EntityRowsError, match="'amount': it has 1 values and 'shop_id' has 2"):
        read(store, features, shop_id=[1, 2], amount=[1.0])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), shops=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_an_override_replaces_a_value_and_completes_a_vector(
    store: "FeatureStore", data: st.DataObject, shops: list[int]
) -> None:
    features = link(store, "both", orders="double", stats__rate="float", city="string")
    plain = read(store, features, shop_id=shops)
    values = {"orders": st.floats(-9, 9), "city": st.sampled_from(["Rome", ""]), "stats__rate": st.floats(width=32)}
    columns = [
        data.draw(st.lists(st.none() | each, min_size=len(shops), max_size=len(shops))) for each in values.values()
    ]
    overrides = dict(zip(values, columns, strict=True))
    given = data.draw(st.sets(st.sampled_from(list(overrides))))

    allowed = msgspec.structs.replace(features, overridable=tuple(overrides))
    answer = read(store, allowed, shop_id=shops, **{name: overrides[name] for name in given})

    rows = plain.vectors.to_pylist()
    for name in given:
        for row, value in zip(rows, overrides[name], strict=True):
            usable = value is not None and (isinstance(value, str) or math.isfinite(value))
            row[name] = value if usable else row[name]
    assert answer.vectors.to_pylist() == rows
    assert answer.vectors.schema == plain.vectors.schema
    assert answer.reasons.to_pylist() == [
        reason if None in row.values() else None for row, reason in zip(rows, plain.reasons.to_pylist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("service", "inputs", "overridable", "says"),
    [
        (
            "both",
            {"orders": "double"},
            "orders, colour",
            "names 'colour', which is not an input that a feature fills (orders)",
        ),
        ("both", {"orders": "double", "amount": "double"}, "amount", "names 'amount', which is not an input that"),
        ("on_demand", {"rate": "double", "expected": "double"}, "rate", "names 'rate', which an on-demand view reads"),
        ("on_demand", {"rate": "double", "expected": "double"}, "expected", None),
        ("on_demand", {"rate": "double"}, "rate", None),  # the view computes nothing for this version
        ("both", {"orders": "double"}, "", None),
    ],
)
@pytest.mark.parametrize("by_tag", [True, False])
def test_only_features_that_nothing_else_reads_may_be_overridable(
    store: "FeatureStore", service: str, inputs: dict[str, str], overridable: str, says: str | None, by_tag: bool
) -> None:
    names = tuple(name.strip() for name in overridable.split(",") if name)
    tags = {"feast.feature_service": service} | ({"serving.overridable": overridable} if by_tag else {})
    setting = ("none of them",) if by_tag else names
    given = Settings(model_name="m", request_inputs=("amount",), overridable_features=setting)
    version = ModelVersion("m", 1, tags)
    if says is None:
        assert link_version(store, version, signature(**inputs), given).overridable == names
        return
    with pytest.raises(ModelRefused, match=re.escape(says)):
        link_version(store, version, signature(**inputs), given)


def test_on_demand_features_never_hide_a_missing_row(store: "FeatureStore") -> None:
    features = link(store, "on_demand", expected="double", filled="double")
    assert features.request_inputs == ("amount",)
    answer = read(store, features, shop_id=[1, 4], amount=[10.0, 10.0])
    assert answer.reasons.to_pylist() == [None, "not_found"]
    assert answer.vectors["filled"].to_pylist() == [1.0, None]
    stale = read(store, features, now=NOW + dt.timedelta(hours=4), shop_id=[1], amount=[10.0])
    assert stale.reasons.to_pylist() == ["stale"]


def test_a_view_in_python_mode_is_served_and_its_whole_numbers_may_stand_beside_a_null(store: "FeatureStore") -> None:
    features = link(store, "python_mode", twice="double", orders="double")
    answer = read(store, features, shop_id=[1, 4], amount=[10.0, 10.0])
    assert answer.reasons.to_pylist() == [None, "not_found"]
    orders = answer.vectors["orders"].to_pylist()
    assert orders[0] is not None
    assert answer.vectors["twice"].to_pylist() == [2 * orders[0], None]


def test_a_view_whose_function_raises_is_no_failure_of_the_store_and_quotes_no_value(store: "FeatureStore") -> None:
    features = link(store, "on_demand", expected="double")
    with pytest.raises(UnusableFeature, match="on-demand feature view 'computed': ValueError") as caught:
        read(store, features, shop_id=[1], amount=[666.0])
    assert "666" not in str(caught.value)


def test_no_entities_give_no_vectors(store: "FeatureStore") -> None:
    features = link(store, "both", orders="double")
    answer = read(store, features, shop_id=[])
    assert (answer.vectors.num_rows, len(answer.reasons)) == (0, 0)


def test_the_service_is_the_tags_then_the_settings(store: "FeatureStore") -> None:
    tagged = ModelVersion("m", 1, {"feast.feature_service": "both"})
    untagged = ModelVersion("m", 2)
    inputs = signature(orders="double")
    assert link_version(store, tagged, inputs, Settings(model_name="m", feature_service="hidden")).service == "both"
    assert link_version(store, untagged, inputs, Settings(model_name="m", feature_service="both")).service == "both"
    with pytest.raises(ModelRefused, match=r"m/2 was refused: it has no tag feast\.feature_service"):
        link_version(store, untagged, inputs, Settings(model_name="m"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"colour": 1}, "'colour', which is not one of its inputs"),
        ({"orders": "many"}, "'many'"),
        ({"orders": True}, "True for its input 'orders', whose type is double"),
        ({"visits": 1.5}, "1.5 for its input 'visits', whose type is int64"),
        ({"visits": -0.5}, "-0.5 for its input 'visits', whose type is int64"),
        ({}, r"^Model version m/1 was refused: its input 'reason' has the name"),
    ],
)
def test_impute_values_must_fit_the_inputs_and_no_input_has_the_name_of_an_output_column(
    store: "FeatureStore", values: dict[str, Any], says: str
) -> None:
    inputs = signature(orders="double", visits="long") if values else signature(orders="double", reason="double")
    settings = Settings(
        model_name="m", missing_features="impute", impute_values=values, feature_service="both",
        request_inputs=() if values else ("reason",),
    )  # fmt: skip
    with pytest.raises(ModelRefused, match=says):
        link_version(store, ModelVersion("m", 1), inputs, settings)


def test_the_definitions_hash_covers_the_content_and_no_timestamps(store: "FeatureStore", tmp_path: Path) -> None:
    before = read_definitions(store).hash
    with contextlib.redirect_stderr(io.StringIO()):
        assert apply_definitions(store).hash == before
        materialize_online_store(store, dt.datetime.now(dt.UTC))
        assert read_definitions(store).hash == before
        elsewhere = other_repository(store, tmp_path, DEFINITIONS)
        assert read_definitions(elsewhere).hash == before
        (tmp_path / "definitions.py").write_text(DEFINITIONS.replace("hours=3", "hours=4"))
        assert apply_definitions(elsewhere).hash != before


def test_watermarks_move_with_the_online_store(store: "FeatureStore") -> None:
    until = dt.datetime.now(dt.UTC)
    with contextlib.redirect_stderr(io.StringIO()):
        moved = materialize_online_store(store, until)
    assert [mark.feature_view for mark in moved] == ["place", "stats"]
    assert all(mark.until is not None and mark.until >= until - dt.timedelta(seconds=1) for mark in moved)
    assert read_watermarks(store) == moved


def test_a_broken_definition_is_one_line_that_names_the_repository(tmp_path: Path) -> None:
    write_definitions(tmp_path, "import nothing_of_that_name")
    with pytest.raises(FeatureStoreError, match=f"applying {tmp_path}: No module named 'nothing_of_that_name'"):
        open_repository(tmp_path)


def test_a_missing_repository_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(FeatureStoreError, match=r"yaml: there is no such file: set SERVING_FEATURE_REPO"):
        open_feature_store(Settings(model_name="m", feature_repo=tmp_path / "none"))


def test_the_definitions_hash_is_the_same_in_every_process(store: "FeatureStore") -> None:
    code = (
        "import sys; from pathlib import Path; from scoring.settings import Settings\n"
        "from scoring.features.feature_store import open_feature_store, read_definitions\n"
        "print(read_definitions(open_feature_store(Settings(model_name='m', feature_repo=Path(sys.argv[1])))).hash)"
    )
    expected = read_definitions(store).hash
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-W", "ignore", "-c", code, str(store.repo_path)]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == expected


def test_a_request_column_that_two_on_demand_views_declare_in_two_ways_is_refused(
    store: "FeatureStore", tmp_path: Path
) -> None:
    whole = 'RequestSource(name="whole", schema=[Field(name="amount", dtype=Int64)])'
    definitions = DEFINITIONS.replace(
        'sources=[stats, basket], mode="python"', f'sources=[stats, {whole}], mode="python"'
    )
    mixed = '\nmixed = FeatureService(name="mixed", features=[stats[["orders"]], computed, counted])\n'
    other = other_repository(store, tmp_path, definitions + mixed)
    with pytest.raises(ModelRefused, match="'amount', which comes with the request, once as double and once as int64"):
        link(other, "mixed", twice="long")
