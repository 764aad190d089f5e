"""Tensors of the Open Inference Protocol, in JSON and as binary data: inputs to columns, and outputs from columns.

Binary data is little-endian and without padding. An element of BYTES has its length before it, in four bytes.
"""

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET, Meta, UnsetType

from api.model import strict_json
from api.model.request_types import Int64, convert_list, list_type
from scoring.models.outputs import OutputType

BYTES = "BYTES"
DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
"""Datatype → the dtype of its elements. BYTES has none."""
# Datatype of an output, and the value that stands for null: a tensor has no nulls. msgspec writes NaN as null.
OUTPUTS: dict[OutputType, tuple[str, Any]] = {
    "double": ("FP64", float("nan")),
    "int64": ("INT64", 0),
    "bool": ("BOOL", False),
    "string": (BYTES, ""),
}
# The datatypes that the metadata names for inputs. Timestamps are strings (ISO 8601).
INPUTS: dict[pa.DataType | None, str] = {
    pa.bool_(): "BOOL",
    pa.int32(): "INT32",
    pa.int64(): "INT64",
    pa.float32(): "FP32",
    None: "FP64",
    pa.float64(): "FP64",
}


Element = Annotated[Any, Meta(description="An element: a number, boolean or string; null if it is unknown.")]


class InvalidTensor(ValueError):
    """The input tensor `name` can't be used; `problem` says why."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"Tensor {name[:50]!r}: {problem}")


class InputParameters(msgspec.Struct, frozen=True):
    """The parameters of an input that have a meaning here. Others are ignored."""

    binary_data_size: Int64 | None = None


class InputTensor(msgspec.Struct, frozen=True):
    """An input of a request. Its data is either in JSON, or follows the JSON of the request."""

    name: str
    shape: list[Int64]
    datatype: str
    parameters: InputParameters | None = None
    data: list[Element] | None = None

    @property
    def binary_size(self) -> int | None:
        """Return the size of its binary data, which is not checked; None if its data is in JSON."""
        size = self.parameters.binary_data_size if self.parameters else None
        if (size is None) == (self.data is None):
            raise InvalidTensor(self.name, "Expected either `data` or the parameter `binary_data_size`")
        return size

    def values(self, binary: bytes | None) -> list[Any]:
        """Return the elements, from JSON or from its binary data. NaN is None.

        Raises:
            InvalidTensor: shape, datatype and data do not fit together.
        """
        if self.datatype != BYTES and self.datatype not in DTYPES:
            raise InvalidTensor(
                self.name, f"Unknown datatype {self.datatype[:20]!r}, expected one of {', '.join([*DTYPES, BYTES])}"
            )
        if not self.shape or self.shape[0] < 0 or self.shape[1:] not in ([], [1]):
            raise InvalidTensor(self.name, f"Expected shape [n] or [n, 1], got {self._shape}")
        if binary is None:
            return self._from_json()
        return self._strings(binary) if self.datatype == BYTES else self._numbers(binary)

    @property
    def _shape(self) -> str:
        return str(self.shape)[:50]

    def _from_json(self) -> list[Any]:
        data: Any = self.data
        if len(self.shape) == 2 and all(type(row) is list and len(row) == 1 for row in data):
            data = [row[0] for row in data]
        if len(data) != self.shape[0]:
            raise InvalidTensor(self.name, f"Its shape {self._shape} needs {self.shape[0]} elements, got {len(data)}")
        try:
            values = convert_list(data, JSON_TYPES[self.datatype])
        except msgspec.ValidationError as error:
            raise InvalidTensor(
                self.name, f"{strict_json.sentence(error)} of `data`, which is {self.datatype}"
            ) from None
        if self.datatype in {"FP16", "FP32"}:  # round to the tensor's precision
            with np.errstate(over="ignore"):
                return _without_nan(np.array(values, DTYPES[self.datatype]))
        return values

    def _numbers(self, binary: bytes) -> list[Any]:
        dtype = DTYPES[self.datatype]
        expected = self.shape[0] * dtype.itemsize
        if len(binary) != expected:
            problem = f"Its shape {self._shape} and datatype {self.datatype} need {expected} bytes"
            raise InvalidTensor(self.name, f"{problem}, got {len(binary)}")
        if dtype.kind == "b" and binary.translate(None, b"\0\1"):
            raise InvalidTensor(self.name, "Expected each BOOL byte to be 0 or 1")
        values = np.frombuffer(binary, dtype)
        return _without_nan(values) if dtype.kind == "f" else values.tolist()

    def _strings(self, binary: bytes) -> list[str]:
        strings: list[str] = []
        at = 0
        while at < len(binary) and len(strings) < self.shape[0]:
            start = at + 4
            at = start + int.from_bytes(binary[at:start], "little")
            try:
                strings.append(binary[start:at].decode())
            except UnicodeDecodeError:
                raise InvalidTensor(self.name, f"Element {len(strings)} is not UTF-8") from None
        if at != len(binary) or len(strings) != self.shape[0]:
            problem = (
                f"Its shape {self._shape} needs {self.shape[0]} elements, each with its length in four bytes before it"
            )
            raise InvalidTensor(self.name, f"{problem}, which does not fit {len(binary)} bytes")
        return strings


class OutputParameters(msgspec.Struct, frozen=True):
    """The parameters of an output in a response."""

    binary_data_size: int


class OutputTensor(msgspec.Struct, frozen=True):
    """An output of a response."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: OutputParameters | UnsetType = UNSET
    data: Sequence[Element] | UnsetType = UNSET


def encode_output(name: str, kind: OutputType, values: list[Any], *, binary: bool) -> tuple[OutputTensor, bytes]:
    """Return an output tensor of these values, and its binary data, which is empty if its data is in JSON."""
    datatype, fill = OUTPUTS[kind]
    if None in values:
        values = [fill if value is None else value for value in values]
    shape = (len(values),)
    if not binary:
        return OutputTensor(name, datatype, shape, data=values), b""
    if datatype == BYTES:
        encoded = [value.encode() for value in values]
        data = b"".join(part for value in encoded for part in (struct.pack("<I", len(value)), value))
    else:
        data = np.array(values, DTYPES[datatype]).tobytes()
    return OutputTensor(name, datatype, shape, OutputParameters(len(data))), data


def _without_nan(values: np.ndarray) -> list[Any]:
    elements: list[Any] = values.tolist()
    return [None if math.isnan(value) else value for value in elements] if np.isnan(values).any() else elements


def _json_type(dtype: np.dtype) -> type[msgspec.Struct]:
    element: Any = {"b": bool, "f": float}.get(dtype.kind)
    if element is None:
        limits = np.iinfo(dtype)
        # msgspec has no limit beyond int64; no column has such values.
        element = Annotated[int, Meta(ge=int(limits.min), le=min(int(limits.max), 2**63 - 1))]
    return list_type(element | None)


# The types of `data`. null is an unknown value, as in the JSON of POST /scores.
JSON_TYPES = {BYTES: list_type(str | None)} | {name: _json_type(dtype) for name, dtype in DTYPES.items()}
