"""ONNX, through ONNX Runtime. A file is a graph of the runtime's own operators: data, not code."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scoring.errors import ModelRefused
from scoring.models.flavors.flavor import ROWS_PER_BLOCK, LoadedModel, reading, require
from scoring.models.model_files import ModelFiles
from scoring.models.tags import OUTPUTS_TAG

__all__ = ["as_mlflow", "check", "load", "prepare"]

# ONNX's element types that a column may have → NumPy's.
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
# Operators whose results for a row have the same bits with any number of other rows: trees, and what converts values.
ROW_BY_ROW = {
    "ArgMax", "ArrayFeatureExtractor", "Cast", "Concat", "Identity", "LabelEncoder", "Reshape", "TreeEnsemble",
    "TreeEnsembleClassifier", "TreeEnsembleRegressor", "ZipMap",
}  # fmt: skip


def check(files: ModelFiles) -> None:
    """See `Flavor.check`."""
    require(files, "onnxruntime", "onnx")
    _file(files)


def load(files: ModelFiles, *, as_array: bool) -> LoadedModel:  # noqa: ARG001 - it takes both
    """See `Flavor.load`. The function `predict` returns all outputs; the tag may name some of them instead."""
    session = _session(files)
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    unusable = [f"{each.name} ({each.type}, {each.shape})" for each in inputs if not _usable(each, len(inputs))]
    if unusable:
        raise ModelRefused(
            str(files.version),
            f"its inputs {', '.join(unusable)} are not columns with a variable number of rows: convert it with one "
            "input for all columns, or with one input per column.",
        )
    functions = []
    for name in files.functions:
        if name not in {"predict", *outputs}:
            known = ", ".join(outputs)
            raise ModelRefused(
                str(files.version), f"its tag {OUTPUTS_TAG} names the output {name!r}, but it has {known}."
            )
        functions.append(functools.partial(_run, session, inputs, outputs if name == "predict" else [name]))
    width = inputs[0].shape[1] if len(inputs) == 1 and len(inputs[0].shape) == 2 else 1
    operators = set(_operators(_file(files).read_bytes()))
    return LoadedModel(
        tuple(functions),
        None,
        [each.name for each in inputs] if len(inputs) > 1 else width if isinstance(width, int) else None,
        rows_per_block=1 if operators and operators <= ROW_BY_ROW else ROWS_PER_BLOCK,
    )


def as_mlflow(files: ModelFiles, function: str) -> dict[str, dict[str, Any]] | None:
    """See `Flavor.as_mlflow`. For a frame, MLflow returns one value for each row and output, or fails."""
    session, data = _session(files), files.flavor("onnx").get("data")
    flat = all(output.type in DTYPES and output.shape[1:] in ([], [1]) for output in session.get_outputs())
    inputs = session.get_inputs()
    if function != "predict" or not flat or (len(inputs) > 1 and any(len(each.shape) > 1 for each in inputs)):
        return None
    threads = {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "execution_mode": "SEQUENTIAL"}
    return {
        "python_function": {"loader_module": "mlflow.onnx", "data": data},
        "onnx": {"data": data, "providers": ["CPUExecutionProvider"], "onnx_session_options": threads},
    }


def prepare(raw: Any) -> None:
    """See `Flavor.prepare`. The description has the number of threads."""


def _file(files: ModelFiles) -> Path:
    return files.file(files.flavor("onnx").get("data"))


def _operators(content: bytes) -> Iterator[str]:
    """Yield the names of the operators in a file that the runtime has read: model.graph.node.op_type (onnx.proto3)."""
    for graph in _members(content, 7):
        for node in _members(graph, 1):
            yield from (name.decode() for name in _members(node, 4))


def _members(message: bytes, wanted: int) -> Iterator[bytes]:
    """Yield the values of a member of a Protocol Buffers message that consist of bytes."""
    place = 0

    def number() -> int:
        nonlocal place
        result = shift = 0
        while True:
            byte = message[place]
            place, result, shift = place + 1, result | (byte & 127) << shift, shift + 7
            if byte < 128:
                return result

    while place < len(message):
        member, kind = divmod(number(), 8)
        size = number() if kind in {0, 2} else 8 if kind == 1 else 4
        if kind == 2 and member == wanted:
            yield message[place : place + size]
        place += size if kind else 0


def _session(files: ModelFiles) -> Any:
    import onnxruntime

    file = _file(files)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised as well
    with reading(files, file, "ONNX"):
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _usable(argument: Any, count: int) -> bool:
    shape = argument.shape
    column = len(shape) == 1 or (len(shape) == 2 and (count == 1 or shape[1] == 1))
    return argument.type in DTYPES and column and not isinstance(shape[0], int)


def _run(session: Any, arguments: list[Any], names: list[str], inputs: Any) -> Any:
    """Run the graph on a frame, or on an array with all columns. Return the only output, or a dict of several."""
    if len(arguments) == 1:
        values = _tensor(inputs, arguments[0])
        feeds = {arguments[0].name: values.reshape(-1) if len(arguments[0].shape) == 1 else values}
    else:
        columns = inputs.T if isinstance(inputs, np.ndarray) else (inputs[each.name] for each in arguments)
        feeds = {
            each.name: _tensor(column, each).reshape((-1, 1)[: len(each.shape)])
            for each, column in zip(arguments, columns, strict=True)
        }
    returned = {name: _columns(values) for name, values in zip(names, session.run(names, feeds), strict=True)}
    return returned[names[0]] if len(returned) == 1 else returned


def _tensor(values: Any, argument: Any) -> np.ndarray:
    """Return the values in the type of an argument.

    Raises:
        ValueError: it takes integers or booleans, and a value is another number or unknown.
    """
    given = np.asarray(values)
    with np.errstate(invalid="ignore"):
        tensor: np.ndarray = np.ascontiguousarray(given, DTYPES[argument.type])
    if tensor.dtype.kind in "ib" and not np.array_equal(tensor, given):
        raise ValueError(f"a value of input {argument.name} does not fit {argument.type}")
    return tensor


def _columns(values: Any) -> Any:
    """Return a sequence of maps (`ZipMap`), one for each row, as a dict of arrays."""
    if not isinstance(values, list) or not values:
        return values
    return {key: np.array([row[key] for row in values]) for key in values[0]}
