"""Numbers and timestamps are decoded at their places to the same as one by one."""

import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from scoring.errors import UnusableFeature
from scoring.feast_plugins.packed_values import PackedValues
from scoring.feast_plugins.value_decoder import LAYOUTS, VALUE_FIELDS, SeparateValues
from scoring.online.packed_replies import PackedReplies

NUMBERS = {
    pa.float32(): st.floats(width=32), pa.float64(): st.floats(), pa.bool_(): st.booleans(),
    pa.int32(): st.integers(-(2**31), 2**31 - 1), pa.int64(): st.integers(0, 3000) | st.integers(-(2**63), 2**63 - 1),
}  # fmt: skip


def packed(columns: list[list[bytes | None]]) -> PackedValues:
    """The same values in replies of Redis."""
    parts = []
    for row in zip(*columns, strict=True):
        parts.append(b"*%d\r\n" % len(row))
        parts += [b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value) for value in row]
    found = PackedReplies(len(columns[0]), len(columns)).find(bytearray(b"".join(parts)))
    assert found is not None
    return found[0]


def serialized(dtype: pa.DataType, number: object) -> bytes:
    value = Value(**{VALUE_FIELDS[dtype]: number})
    return value.SerializeToString()


def values(dtype: pa.DataType) -> st.SearchStrategy[bytes]:
    return NUMBERS[dtype].map(lambda number: serialized(dtype, number))


def same(ours: pa.Array, theirs: pa.Array) -> bool:
    """Whether arrays are equal to the bit, also where they are NaN."""
    return ours.type == theirs.type and ours.view(bits(ours.type)).equals(theirs.view(bits(ours.type)))


def bits(dtype: pa.DataType) -> pa.DataType:
    return {pa.float32(): pa.int32(), pa.float64(): pa.int64()}.get(dtype, dtype)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@given(data=st.data())
def test_numbers_of_several_fields(dtype: pa.DataType, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 40))
    columns = [data.draw(st.lists(values(dtype), min_size=rows, max_size=rows)) for _ in range(2)]
    ours, theirs = (each.numbers((0, 1), LAYOUTS[dtype]) for each in (packed(columns), SeparateValues(columns)))
    assert ours is not None
    assert theirs is not None
    assert (ours.shape, ours.tobytes()) == (theirs.shape, theirs.tobytes())


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@given(data=st.data())
def test_a_field_with_missing_values(dtype: pa.DataType, data: st.DataObject) -> None:
    missing = st.sampled_from([None, b""])
    column = data.draw(st.lists(values(dtype) | missing, min_size=1, max_size=40))
    fields = packed([column])
    assert same(fields.array(0, dtype), SeparateValues([column]).array(0, dtype))
    if not all(column):
        assert fields.numbers((0,), LAYOUTS[dtype]) is None


any_value = st.sampled_from(list(NUMBERS)).flatmap(values) | st.binary(max_size=12)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@given(column=st.lists(any_value, min_size=1, max_size=20).filter(lambda column: b"\r" not in b"".join(column)))
def test_values_of_another_wire_format(dtype: pa.DataType, column: list[bytes | None]) -> None:
    results = []
    for fields in (packed([column]), SeparateValues([column])):
        try:
            results.append(fields.array(0, dtype))
        except (DecodeError, UnusableFeature) as error:
            results.append(str(error))
    ours, theirs = results
    assert same(ours, theirs) if isinstance(theirs, pa.Array) else ours == theirs


times = st.builds(Timestamp, seconds=st.integers(0, 2**33), nanos=st.sampled_from([0, 5000000]))


@given(st.lists(times.map(Timestamp.SerializeToString) | st.sampled_from([None, b""]), min_size=1, max_size=40))
def test_event_times_that_differ(column: list[bytes | None]) -> None:
    assert packed([column]).timestamps(0).tolist() == SeparateValues([column]).timestamps(0).tolist()


@given(times.map(Timestamp.SerializeToString), st.integers(1, 40))
def test_event_times_that_are_all_the_same(time: bytes, rows: int) -> None:
    column: list[bytes | None] = [time] * rows
    assert packed([column]).timestamps(0).tolist() == SeparateValues([column]).timestamps(0).tolist()
