"""The errors and metadata of the Open Inference Protocol, and its routes for health and metadata."""

import functools
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from api.errors import ModelNotServed
from api.model.model_slot import Served
from api.protocols.operation import Bodies, Content, Operation
from api.protocols.problems import Problem
from api.protocols.response import JSON, JSON_HEADER, Response
from api.protocols.tensors import INPUTS, OUTPUTS
from scoring.models.outputs import Outputs, OutputType

REASON = "reason"
TAG = "open_inference"


class InferenceError(msgspec.Struct, frozen=True):
    """An error of any route of the protocol."""

    error: str
    instance: Annotated[str, Meta(description="Identifies this occurrence, also in the log.")]


class ServerMetadata(msgspec.Struct, frozen=True):
    """The server."""

    name: str
    version: str
    extensions: tuple[str, ...] = ("binary_tensor_data",)


class ServerLive(msgspec.Struct, frozen=True):
    """The process is up."""

    live: bool = True


class ServerReady(msgspec.Struct, frozen=True):
    """Model and feature store are usable."""

    ready: bool = True


class ModelReady(msgspec.Struct, frozen=True):
    """The model serves, and the feature store is usable."""

    name: str
    ready: bool = True


class TensorMetadata(msgspec.Struct, frozen=True):
    """One input or output of the model."""

    name: str
    datatype: str
    shape: tuple[int, ...] = (-1,)


class ModelMetadata(msgspec.Struct, frozen=True):
    """The model that serves."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def error_response(problem: Problem, headers: list[tuple[bytes, bytes]]) -> Response:
    """Return the protocol's error. KServe's client reads it only if the media type is exactly `application/json`."""
    error = InferenceError(problem.detail, problem.instance)
    return Response(problem.status, [JSON_HEADER, *headers], msgspec.json.encode(error))


def metadata_operations(bodies: Bodies) -> dict[str, Operation]:
    """Return path → operation of the protocol's health and metadata, for the OpenAPI document."""
    error: Content = {JSON.decode(): {"schema": bodies.schema(InferenceError)}}
    found: dict[str, Operation] = {}

    def add(path: str, name: str, summary: str, answer: type[msgspec.Struct], statuses: tuple[int, ...] = ()) -> None:
        content = {JSON.decode(): {"schema": bodies.schema(answer)}}
        found[f"/v2{path}"] = Operation(f"v2_{name}", TAG, summary, content, error, statuses)

    add("", "server", "The server", ServerMetadata)
    add("/health/live", "live", "The process is up", ServerLive)
    add("/health/ready", "ready", "Model and feature store are usable", ServerReady, (503,))
    for path, name in (("/models/{name}", "model"), ("/models/{name}/versions/{version}", "model_version")):
        add(path, name, "The model's inputs and outputs", ModelMetadata, (404, 503))
        add(f"{path}/ready", f"{name}_ready", "The model is usable", ModelReady, (404, 503))
    return found


def check_served(served: Served, parameters: Mapping[str, str]) -> None:
    """Check that the model in the path serves now, in the version in the path if there is one.

    Raises:
        ModelNotServed: another model or version serves.
    """
    version = served.scorer.version
    given = "/".join(parameters[name] for name in ("name", "version") if name in parameters)
    if given != (str(version) if "version" in parameters else version.name):
        raise ModelNotServed(given, str(version))


def metadata(served: Served) -> ModelMetadata:
    """Return the metadata of the model that serves."""
    version, columns = served.scorer.version, served.scorer.features.request_columns
    return ModelMetadata(
        version.name,
        (str(version.version),),
        "mlflow",
        [TensorMetadata(name, INPUTS.get(dtype, "BYTES")) for name, dtype in columns.items()],
        [TensorMetadata(name, OUTPUTS[kind][0]) for name, kind in output_types(served.scorer.outputs).items()],
    )


@functools.lru_cache(maxsize=2)
def output_types(outputs: Outputs) -> dict[str, OutputType]:
    """Return the name and type of each output tensor: the model's outputs, as in a file, and the reason."""
    types = zip(outputs.names, (column.type for column in outputs.columns), strict=True)
    return {**dict(types), REASON: "string"}
