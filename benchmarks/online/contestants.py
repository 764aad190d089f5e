"""The online servers under comparison: how to start them, send requests and read responses. One process each."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from benchmarks.environments import OURS, python_of
from benchmarks.paths import PEERS, ROOT
from benchmarks.processes import tree
from tests.support.servers import Server, answers_http, free_port

Choice = tuple[int, float] | None
"""The best driver and its score, or None if no driver has features."""


class UnexpectedAnswer(RuntimeError):
    """A server failed to answer a request that it should be able to answer."""

    def __init__(self, name: str, status: int, answer: bytes) -> None:
        super().__init__(f"{name} answered {status}: {answer[:300].decode(errors='replace')}")


@dataclasses.dataclass
class Contestant(Server):
    """One server under comparison, in its own process group, with its log in `directory`."""

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables that locate the feature store and the model."""

    path = "/inference"
    ready_path = "/ready"
    template = '{"request_id":"r","driver_ids":[IDS]}'
    starts_within_s = 150.0
    stops_within_s = 30.0

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}{self.path}"

    def own_environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **self.environment}

    def answers(self) -> bool:
        return answers_http(self.port, self.ready_path)

    def kill(self) -> None:
        """Kill it with all its processes: BentoML's worker is in a separate session."""
        left = tree(self.process.pid)[1:] if self.running and self.process is not None else []
        super().kill()
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def body(self, ids: list[int]) -> bytes:
        """Return the request body for these drivers."""
        template = self.template.replace("COUNT", str(len(ids))).replace("CONTEXT", str(ids[-1]))
        return template.replace("IDS", ",".join(map(str, ids))).encode()

    def ask(self, ids: list[int]) -> httpx.Response:
        """Send one request and return the response."""
        return self._client.post(self.url, content=self.body(ids), headers={"Content-Type": "application/json"})

    @functools.cached_property
    def _client(self) -> httpx.Client:  # takes longer to create than some servers to answer
        return httpx.Client(timeout=60, trust_env=False)

    def choice(self, status: int, answer: bytes) -> Choice:
        """Parse a response."""
        if status != 200:
            raise UnexpectedAnswer(self.name, status, answer)
        content = json.loads(answer)
        return None if content["prediction"] is None else (content["prediction"], content["score"])


class Ours(Contestant):
    """The product: `python -m api` with default settings."""

    name = "ours"

    def command(self) -> list[str]:
        return [str(python_of(OURS)), "-m", "api"]

    def own_environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(ROOT), "SERVING_PORT": str(self.port), "SERVING_CHALLENGER_SAMPLE": "0"}
        return {"OMP_NUM_THREADS": "1", **own, **self.environment}

    def choice(self, status: int, answer: bytes) -> Choice:
        if status == 422 and json.loads(answer)["type"].endswith("nothing-scored"):
            return None
        return super().choice(status, answer)


class OursLogging(Ours):
    """The product with a prediction log of all requests."""

    name = "ours-log"

    def own_environment(self) -> dict[str, str]:
        return super().own_environment() | {"SERVING_PREDICTION_LOG": str(self.directory / "log")}


class OursChallenger(OursLogging):
    """The product with a prediction log, and with a challenger for all requests."""

    name = "ours-challenger"

    def own_environment(self) -> dict[str, str]:
        return super().own_environment() | {"SERVING_CHALLENGER_SAMPLE": "1"}


class Peer(Contestant):
    """A server with its own environment that does the work of peers/ranker.py."""

    peer: str
    """Name of its folder and its environment. Several servers may share one."""

    @property
    def code(self) -> Path:
        """The folder of the service's code."""
        return PEERS / self.peer

    def command(self) -> list[str]:
        return [str(python_of(self.peer)), str(self.code / "serve.py"), str(self.port)]

    def own_environment(self) -> dict[str, str]:
        return super().own_environment() | {"PYTHONPATH": f"{PEERS}:{self.code}"}


class FastApi(Peer):
    """FastAPI on uvicorn."""

    name = peer = "fastapi"


class BentoMl(Peer):
    """BentoML's own server."""

    name = peer = "bentoml"
    ready_path = "/readyz"
    service = "DriverRanker"

    def command(self) -> list[str]:
        bentoml = python_of(self.peer).with_name("bentoml")
        return [
            *(str(bentoml), "serve", f"service:{self.service}", "--working-dir", str(self.code)),
            *("--host", self.host, "--port", str(self.port)),
        ]

    def own_environment(self) -> dict[str, str]:
        # A home for its models and logs, and no usage reports during the measurement.
        own = {"BENTOML_HOME": str(self.directory), "BENTOML_DO_NOT_TRACK": "true"}
        return super().own_environment() | own


class BentoMlBatching(BentoMl):
    """BentoML with its adaptive batching. Its requests are lists."""

    name = "bentoml-batching"
    service = "BatchingDriverRanker"
    template = '{"requests":[{"request_id":"r","driver_ids":[IDS]}]}'

    def choice(self, status: int, answer: bytes) -> Choice:
        return super().choice(status, json.dumps(json.loads(answer)[0]).encode() if status == 200 else answer)


class BentoMlRegistry(BentoMl):
    """BentoML with a model from an alias of the MLflow registry, as in the product."""

    name = "bentoml-registry"

    def own_environment(self) -> dict[str, str]:
        return super().own_environment() | {"BENCH_MODEL": self.environment["BENCH_REGISTERED_MODEL"]}


CANDIDATES = '{"request_id":"r","user_id":CONTEXT,"item_ids":[IDS]}'


class OursRanking(Ours):
    """The product, ranking items for a user."""

    template = CANDIDATES

    def choice(self, status: int, answer: bytes) -> Choice:
        choice: Any = super().choice(status, answer)  # its prediction has both keys
        return choice and (choice[0]["item_id"], choice[1])


class BentoMlRanking(BentoMl):
    """BentoML, ranking items for a user."""

    service = "ItemRanker"
    template = CANDIDATES


class FeastServe(Peer):
    """Feast's own feature server. It answers with features only, so there is no choice to compare."""

    name = "feast"
    peer = "fastapi"  # its environment has what the server needs
    path = "/get-online-features"
    ready_path = "/health"
    service = "driver_ranking"

    @property
    def template(self) -> str:  # type: ignore[override]  # a constant of the other servers
        return f'{{"feature_service":"{self.service}","full_feature_names":true,"entities":{{"driver_id":[IDS]}}}}'

    def command(self) -> list[str]:
        feast = python_of(self.peer).with_name("feast")
        repository = self.environment["BENCH_FEATURE_REPO"]
        configuration = f"{repository}/{self.environment['BENCH_FEATURE_STORE_YAML']}"
        # By default, its worker starts anew after 1,000 requests.
        return [
            *(str(feast), "-c", repository, "-f", configuration, "--log-level", "ERROR", "serve", "--no-access-log"),
            *("--host", self.host, "--port", str(self.port), "--max-requests", "0", "--max-requests-jitter", "0"),
        ]


class FeastPrecomputed(FeastServe):
    """Feast's own feature server with a service whose vectors are precomputed."""

    name = "feast-precomputed"
    service = "precomputed"


class MlServer(Peer):
    """MLServer with a custom runtime and the V2 inference protocol."""

    name = peer = "mlserver"
    path = "/v2/models/driver_ranker/infer"
    ready_path = "/v2/models/driver_ranker/ready"
    template = '{"inputs":[{"name":"driver_ids","shape":[COUNT],"datatype":"INT64","data":[IDS]}]}'

    def command(self) -> list[str]:
        return [str(python_of(self.peer).with_name("mlserver")), "start", str(self.code)]

    def own_environment(self) -> dict[str, str]:
        ports = {"HTTP_PORT": self.port, "GRPC_PORT": free_port(), "METRICS_PORT": free_port()}
        own = {f"MLSERVER_{name}": str(port) for name, port in ports.items()}
        return super().own_environment() | own | {"MLSERVER_HOST": self.host}

    def choice(self, status: int, answer: bytes) -> Choice:
        if status != 200:
            return super().choice(status, answer)
        outputs: dict[str, Any] = {each["name"]: each["data"] for each in json.loads(answer)["outputs"]}
        return (outputs["prediction"][0], outputs["score"][0]) if outputs["prediction"] else None


class Invocations(Contestant):
    """A server that speaks MLflow's scoring protocol. Its answers have no ids: the best one is named by its place."""

    path = "/invocations"
    ready_path = "/ping"
    template = '{"inputs":{"driver_id":[IDS]}}'

    def choice(self, status: int, answer: bytes) -> Choice:
        if status != 200:
            raise UnexpectedAnswer(self.name, status, answer)
        scores = [(score, -place) for place, score in enumerate(json.loads(answer)["predictions"]) if score is not None]
        return (-max(scores)[1], max(scores)[0]) if scores else None


class OursInvocations(Invocations, Ours):
    """The product's POST /invocations."""


class MlflowServe(Invocations, Peer):
    """MLflow's own scoring server. The product's environment has what it needs."""

    name = "mlflow-serve"
    peer = OURS

    @property
    def code(self) -> Path:
        return PEERS / "mlflow_serve"


class OursTensors(Ours):
    """The product's POST /v2/models/{name}/infer. Its answer has the scores of all drivers, but no ids."""

    template = '{"inputs":[{"name":"driver_id","shape":[COUNT],"datatype":"INT64","data":[IDS]}]}'

    @property
    def path(self) -> str:  # type: ignore[override]  # a constant of the other servers
        return f"/v2/models/{self.environment['SERVING_MODEL_NAME']}/infer"

    def choice(self, status: int, answer: bytes) -> Choice:
        if status != 200:
            raise UnexpectedAnswer(self.name, status, answer)
        scores = [score for score in json.loads(answer)["outputs"][0]["data"] if score is not None]
        return (0, max(scores)) if scores else None


class MlServerTensors(MlServer):
    """MLServer, compared only by the best score, because the product's answer has no ids."""

    def choice(self, status: int, answer: bytes) -> Choice:
        best = super().choice(status, answer)
        return None if best is None else (0, best[1])


class Constant(Contestant):
    """A typed Litestar route that answers a constant: the cost of HTTP and JSON without any other work."""

    name = "constant"

    def command(self) -> list[str]:
        return [sys.executable, str(PEERS / self.name / "serve.py"), str(self.port)]


ALL: tuple[type[Contestant], ...] = (Ours, BentoMl, BentoMlBatching, MlServer, FastApi, Constant)
BESIDE_FEAST: tuple[type[Contestant], ...] = (Ours, BentoMl, FeastServe, FeastPrecomputed)
COMPARED: dict[str, tuple[type[Contestant], ...]] = {
    "MLflow's protocol": (OursInvocations, MlflowServe),
    "Open Inference Protocol V2": (OursTensors, MlServerTensors),
    "with a prediction log": (Ours, OursLogging),
    "with a challenger": (OursLogging, OursChallenger),
}
"""What some contestants are compared in → those contestants. ALL and BESIDE_FEAST have their own forms of requests."""
