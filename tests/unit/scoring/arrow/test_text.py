"""Every Arrow value is printed, or a placeholder for it; none raises."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from scoring.arrow.text import NOT_PRINTABLE, to_string

FAR = 2**62
NO_UTF8 = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"a\xff")]
)
SAME_NAME = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
ODD = {
    "beyond year 9999": (pa.array([253402300800], pa.timestamp("s")), "10000-01-01 00:00:00"),
    "far beyond": (pa.array([FAR], pa.timestamp("us", "UTC")), "<value out of range"),
    "before year 1": (pa.array([-(10**6)], pa.date32()), "-0768-02-04"),
    "a zone of another planet": (pa.array([0], pa.timestamp("us", "Mars/Phobos")), "1970-01-01 00:00:00"),
    "a long duration": (pa.array([2**53], pa.duration("s")), str(2**53)),
    "no UTF-8": (NO_UTF8, "a\N{REPLACEMENT CHARACTER}"),
    "one name twice": (SAME_NAME, NOT_PRINTABLE),
    "a list of them": (pa.array([[FAR]], pa.list_(pa.timestamp("us"))), NOT_PRINTABLE),
    "a dictionary of them": (pa.array([FAR], pa.timestamp("us")).dictionary_encode(), "<value out of range"),
}


@pytest.mark.parametrize(("values", "text"), ODD.values(), ids=ODD)
def test_a_value_that_python_cannot_hold_is_shown_as_arrow_shows_it_or_not_at_all(values, text):
    assert to_string(values[0]).startswith(text)


def test_other_values_are_shown_as_python_shows_them_and_nulls_as_nothing():
    assert to_string(pa.scalar(1.5)) == "1.5"
    assert to_string(pa.scalar([1, 2])) == "[1, 2]"
    assert to_string(pa.scalar(dt.date(2026, 1, 2))) == "2026-01-02"
    assert to_string(pa.scalar(None, pa.timestamp("us", "Mars/Phobos"))) == ""
