"""A light look at the alias: what it names, or whether anything can have changed, without importing MLflow.

MLflow takes seconds to import, and a look every few seconds is too often for it. An http(s) registry is asked over
REST. Of an SQLite registry only the file's time is looked at. Whatever else there is takes the client.
"""

import base64
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import msgspec

from scoring.errors import AliasNotSet, RegistryUnreachable
from scoring.models.registry import Registry
from scoring.settings import Settings

TIMEOUT_S = 4.0
# Ways to a server that this module does not go: a plug-in that signs requests, AWS signatures, client certificates,
# workspaces. A file of credentials in the home directory is another.
ONLY_THE_CLIENT_KNOWS = (
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_WORKSPACE",
)
# A file system's clock may stand still for some milliseconds: what was written this recently may change again without
# showing it.
SETTLED_AFTER_S = 2.0


class AliasTarget(msgspec.Struct, frozen=True):
    """What one look at the alias has shown."""

    version: int
    created_ms: int = 0
    """When that version was registered (`ModelVersion.created_ms`); 0 if the registry does not tell."""
    state: str | None = None
    """Names the state of the registry in which this was so: while `unchanged` gives the same, so is the answer."""


def resolve_alias(registry: Registry, settings: Settings, environment: Mapping[str, str]) -> AliasTarget:
    """Which version the alias names now.

    Args:
        registry: asked where there is no lighter way.
        settings: the model's name, its alias, the registry's address.
        environment: holds MLflow's own variables for the way to its server (as os.environ).

    Raises:
        RegistryError: unreachable, no such model, or the alias is not set.
    """
    if _answers_rest(settings.registry_uri, environment):
        found = _ask(settings, environment)
        if found is not None:
            return found
    state = unchanged(settings)  # before the question: what changes meanwhile must show at the next look
    version = registry.resolve(settings.model_name, settings.model_alias)
    return AliasTarget(version.version, version.created_ms, state)


def unchanged(settings: Settings) -> str | None:
    """The state of an SQLite registry by its files; None where it can't be told without asking."""
    file = _sqlite_file(settings.registry_uri)
    if file is None:
        return None
    states = [settings.registry_uri, settings.model_name, settings.model_alias]
    try:
        for each in (file, file.with_name(f"{file.name}-wal")):
            if each == file or each.exists():
                found = each.stat()
                if time.time() - found.st_mtime < SETTLED_AFTER_S:
                    return None
                states.append(f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}")
    except OSError:
        return None
    return " ".join(states)


def _sqlite_file(uri: str) -> Path | None:
    prefix = "sqlite:///"
    path = uri.removeprefix(prefix).partition("?")[0]
    return Path(path) if uri.startswith(prefix) and path else None


def _answers_rest(uri: str, environment: Mapping[str, str]) -> bool:
    if any(environment.get(name) for name in ONLY_THE_CLIENT_KNOWS):
        return False
    credentials = Path(environment.get("HOME", "/")) / ".mlflow" / "credentials"
    return uri.startswith(("http://", "https://")) and not credentials.exists()


def _ask(settings: Settings, environment: Mapping[str, str]) -> AliasTarget | None:
    """What the server says; None where the server says that there is none: the client knows to tell why."""
    uri, authorization = _address(settings.registry_uri, environment)
    query = urllib.parse.urlencode({"name": settings.model_name, "alias": settings.model_alias})
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/registered-models/alias?{query}")  # noqa: S310 - http(s)
    if authorization:
        request.add_header("Authorization", authorization)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_tls(uri, environment)) as answer:  # noqa: S310
            found = json.load(answer)["model_version"]
            return AliasTarget(int(found["version"]), int(found.get("creation_timestamp") or 0))
    except urllib.error.HTTPError as error:
        code = _error_code(error)
        if code == "INVALID_PARAMETER_VALUE":  # the model is there, the alias is not (mlflow 3.17)
            raise AliasNotSet(settings.model_name, settings.model_alias) from None
        if code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise RegistryUnreachable(settings.registry_uri, f"HTTP {error.code}") from None
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # no connection, or something else than MLflow answers
        raise RegistryUnreachable(settings.registry_uri, error) from None


def _address(uri: str, environment: Mapping[str, str]) -> tuple[str, str | None]:
    """The registry's address without credentials, and the header that the client would send."""
    parts = urllib.parse.urlsplit(uri.rstrip("/"))
    plain = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    user = environment.get("MLFLOW_TRACKING_USERNAME") or urllib.parse.unquote(parts.username or "")
    password = environment.get("MLFLOW_TRACKING_PASSWORD") or urllib.parse.unquote(parts.password or "")
    if user and password:
        return plain, "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    token = environment.get("MLFLOW_TRACKING_TOKEN")
    return plain, f"Bearer {token}" if token else None


def _tls(uri: str, environment: Mapping[str, str]) -> ssl.SSLContext | None:
    if not uri.startswith("https://"):
        return None
    context = ssl.create_default_context(cafile=environment.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None)
    if environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _error_code(error: urllib.error.HTTPError) -> str | None:
    try:
        found = json.loads(error.read(65536))
    except (OSError, ValueError):
        return None
    return str(found.get("error_code")) if isinstance(found, dict) else None
