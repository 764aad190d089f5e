"""The Open Inference Protocol V2 over REST, with the binary tensor data extension: POST /v2/models/{name}/infer.

Specification: https://github.com/kserve/open-inference-protocol (specification/protocol) and, for binary data,
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api.errors import InvalidHeader, UnsupportedMediaType
from api.model import strict_json
from api.model.model_slot import Served
from api.model.request_schema import RequestSchema
from api.model.request_types import MAX_REQUEST_ID
from api.model.scorer import RowScores
from api.protocols.open_inference_metadata import TAG, InferenceError, check_served, error_response, output_types
from api.protocols.operation import BODY_PROBLEMS, Bodies, Content, Operation
from api.protocols.problems import Problem
from api.protocols.response import JSON, JSON_HEADER, Headers, Response, media_type
from api.protocols.scoring import Scoring
from api.protocols.tensors import BYTES, InputTensor, InvalidTensor, OutputTensor, encode_output
from api.protocols.wire_format import Call, request_id_of
from scoring.models.outputs import OutputType
from scoring.settings import Settings

BINARY = b"application/octet-stream"
JSON_LENGTH = b"inference-header-content-length"
# The datatypes of examples by the types of their values.
EXAMPLE_TYPES: dict[type, str] = {int: "INT64", bool: "BOOL", float: "FP64", str: "BYTES"}


class RequestedParameters(msgspec.Struct, frozen=True):
    """The parameters of a requested output that change its form. Others are ignored."""

    binary_data: bool | None = None
    classification: Any = None
    shared_memory_region: Any = None


class RequestedOutput(msgspec.Struct, frozen=True):
    """An output that the response should have."""

    name: str
    parameters: RequestedParameters | None = None


class Parameters(msgspec.Struct, frozen=True):
    """The parameters of a request that have a meaning here. Others are ignored."""

    binary_data_output: bool = False


class InferenceRequest(msgspec.Struct, frozen=True):
    """The JSON of a request. Other members are ignored, because KServe's client sends `model_name`."""

    inputs: list[InputTensor]
    id: Annotated[str, Meta(max_length=MAX_REQUEST_ID)] | None = None
    parameters: Parameters | None = None
    outputs: list[RequestedOutput] | None = None


class InferenceResponse(msgspec.Struct, frozen=True):
    """The JSON of a response."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


class OpenInferenceFormat:
    """A `WireFormat` for inference requests: one input tensor per join key and request input."""

    def __init__(self, settings: Settings) -> None:
        self._max_body_bytes = settings.max_body_bytes
        self._max_entities = settings.max_entities
        self._decoder = msgspec.json.Decoder(InferenceRequest)

    def check_headers(self, headers: Headers) -> int:
        """See `WireFormat.check_headers`. tritonclient declares no media type."""
        if media_type(headers) not in {b"", JSON, BINARY}:
            raise UnsupportedMediaType([JSON.decode(), BINARY.decode()])
        return self._max_body_bytes

    async def respond(self, call: Call, scoring: Scoring) -> Response:
        """See `WireFormat.respond`."""
        served = scoring.current(call.context)
        check_served(served, call.parameters)
        size = _json_size(call.headers, len(call.body))
        schema, kinds = served.schema, output_types(served.scorer.outputs)
        try:
            infer = self._decode(call.body[:size], schema)
            wanted = _wanted(infer, kinds)
            schema.check_columns([tensor.name for tensor in infer.inputs])
            columns = _columns(infer.inputs, call.body[size:])
        except InvalidTensor as error:
            raise schema.invalid_columns(str(error)) from None
        request = schema.from_columns(infer.id or request_id_of(call.headers), columns, self._max_entities)
        scores = await scoring.score(served, request, call.context)
        return _response(served, request.request_id, kinds, wanted, scores)

    def problem(self, problem: Problem, headers: list[tuple[bytes, bytes]]) -> Response:
        """See `WireFormat.problem`."""
        return error_response(problem, headers)

    def operation(self, path: str, bodies: Bodies) -> Operation:
        """See `WireFormat.operation`."""
        infer: dict[str, Any] = {"schema": bodies.schema(InferenceRequest)}
        if bodies.request_schema is not None:
            infer["example"] = {
                "inputs": [
                    {"name": name, "shape": [len(data)], "datatype": EXAMPLE_TYPES[type(data[0])], "data": data}
                    for name, data in bodies.example_columns.items()
                ]
            }
        binary: Content = {
            BINARY.decode(): {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "The same JSON, then the binary data of its tensors. The header "
                    "Inference-Header-Content-Length has the size of the JSON.",
                }
            }
        }
        return Operation(
            "v2_infer_version" if "{version}" in path else "v2_infer",
            TAG,
            "The outputs and the reason of each entity as tensors",
            {JSON.decode(): {"schema": bodies.schema(InferenceResponse)}} | binary,
            {JSON.decode(): {"schema": bodies.schema(InferenceError)}},
            tuple(sorted({404, *BODY_PROBLEMS})),
            # Without a schema, which openapi-python-client turns into a module that can't be imported.
            {JSON.decode(): infer, BINARY.decode(): {}},
        )

    def _decode(self, body: bytes, schema: RequestSchema) -> InferenceRequest:
        infer: InferenceRequest = strict_json.decode(self._decoder, body, schema.invalid_columns, skips_members=True)
        strict_json.check_duplicates(body, schema.invalid_columns, _count_strings(infer))
        return infer


def _count_strings(infer: InferenceRequest) -> int:
    """Return the number of strings in the JSON of a request without parameters and outputs; fewer for any other."""
    strings = 1 if infer.id is None else 3
    for tensor in infer.inputs:
        strings += 6 if tensor.datatype != BYTES else 6 + sum(type(value) is str for value in tensor.data or ())
    return strings


def _json_size(headers: Headers, body_size: int) -> int:
    """Return the size of the JSON at the beginning of a body: all of it, unless a header says otherwise."""
    given = headers.get(JSON_LENGTH)
    if given is None:
        return body_size
    if not given.isdigit() or len(given) > 18 or int(given) > body_size:
        problem = "it is not the size of the JSON at the beginning of the body"
        raise InvalidHeader("Inference-Header-Content-Length", problem)
    return int(given)


def _wanted(infer: InferenceRequest, kinds: Mapping[str, OutputType]) -> dict[str, bool]:
    """Return the names of the outputs that a request wants, and whether as binary data."""
    default = infer.parameters is not None and infer.parameters.binary_data_output
    if not infer.outputs:
        return dict.fromkeys(kinds, default)
    wanted: dict[str, bool] = {}
    for output in infer.outputs:
        if output.name not in kinds:
            raise InvalidTensor(output.name, f"The model's outputs are {', '.join(kinds)}")
        if output.name in wanted:
            raise InvalidTensor(output.name, "It is requested twice")
        parameters = output.parameters or RequestedParameters()
        if parameters.classification is not None or parameters.shared_memory_region is not None:
            raise InvalidTensor(output.name, "The extensions for classification and shared memory are not supported")
        wanted[output.name] = default if parameters.binary_data is None else parameters.binary_data
    return wanted


def _columns(inputs: list[InputTensor], binary: bytes) -> dict[str, list[Any]]:
    """Return input name → its values. `binary` is the binary data of all of them, in their order."""
    columns: dict[str, list[Any]] = {}
    at = 0
    for tensor in inputs:
        data, size = None, tensor.binary_size
        if size is not None:
            if not 0 <= size <= len(binary) - at:
                problem = f"Its binary_data_size is {size}, but only {len(binary) - at} bytes of the body are left"
                raise InvalidTensor(tensor.name, f"{problem} (see the header Inference-Header-Content-Length)")
            data = binary[at : at + size]
            at += size
        columns[tensor.name] = tensor.values(data)
    if at != len(binary):
        last = inputs[-1].name if inputs else ""
        raise InvalidTensor(last, f"{len(binary) - at} bytes follow the binary data of the last tensor")
    return columns


def _response(
    served: Served, request_id: str, kinds: Mapping[str, OutputType], wanted: Mapping[str, bool], scores: RowScores
) -> Response:
    values = dict(zip(kinds, [*scores.outputs, scores.reasons], strict=True))
    tensors, pieces = [], []
    for name, binary in wanted.items():
        tensor, data = encode_output(name, kinds[name], values[name], binary=binary)
        tensors.append(tensor)
        pieces.append(data)
    version = served.scorer.version
    body = msgspec.json.encode(InferenceResponse(version.name, str(version.version), request_id, tensors))
    if not any(wanted.values()):
        return Response(200, [JSON_HEADER], body)
    headers = [(b"content-type", BINARY), (JSON_LENGTH, b"%d" % len(body))]
    return Response(200, headers, b"".join([body, *pieces]))
