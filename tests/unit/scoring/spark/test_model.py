"""Values that Spark's pandas frames change are restored: integers next to nulls, large integers, times, strings."""

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.arrow.signature import ARROW_TYPES
from scoring.predict import IMPUTED
from scoring.spark.model import REASONS, decode_reasons, decode_vectors, encode_vectors

VALUES = {
    "boolean": st.booleans(),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "string": st.text(),
    "datetime": st.integers(-(2**63), 2**63 - 1),
}


def as_spark_hands_it_over(table: pa.Table) -> pd.DataFrame:
    """A frame of a struct column's fields: each is a pandas series, a null in a text column is None."""
    return table.to_pandas()


@pytest.mark.parametrize("kind", ARROW_TYPES)
@given(data=st.data())
def test_a_vector_comes_through_as_it_was(kind: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | VALUES[kind], min_size=1, max_size=20))
    reasons = data.draw(st.lists(st.none() | st.sampled_from(REASONS), min_size=len(values), max_size=len(values)))
    vectors = pa.table({"a": pa.array(values, ARROW_TYPES[kind]), "b": pa.nulls(len(values), pa.float64())})

    encoded = encode_vectors(vectors, pa.array(reasons, pa.string()))

    assert not any(encoded[name].null_count for name in encoded.column_names if name.startswith("n"))
    frame = as_spark_hands_it_over(encoded)
    assert decode_vectors(frame, vectors.schema).equals(vectors)
    assert decode_reasons(pa.array(frame["reason"].to_numpy())).to_pylist() == reasons


def test_every_reason_has_a_code() -> None:
    assert {f"{IMPUTED}{reason}" for reason in REASONS[:3]} == set(REASONS[5:])
