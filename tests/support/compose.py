"""docker-compose.yml as `docker compose config` prints it: variables replaced, merges done. Docker is not required."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
EXAMPLE_FILE = ROOT / ".env.example"

# $$, ${NAME}, ${NAME:-default} or ${NAME:?message}: the only forms of Compose's syntax that our file uses.
VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<sign>:[-?])(?P<text>[^}]*))?\})")

EXAMPLE_VALUES = {
    "SERVING_MODEL_NAME": "driver_ranker",
    "SERVING_API_KEYS": "a-caller-s-key-of-24-chars",
    "SERVING_WEBHOOK_SECRET": "a-webhook-secret-of-24-c",
    "POSTGRES_PASSWORD": "p0stgres",
    "MLFLOW_DB_PASSWORD": "m1flow",
    "DAGSTER_DB_PASSWORD": "dagst3r",
    "FEAST_DB_PASSWORD": "f3ast",
    "REDIS_PASSWORD": "red1s",
    "S3_ACCESS_KEY": "acc3ss",
    "S3_SECRET_KEY": "s3cretkey",
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    "GRAFANA_ADMIN_PASSWORD": "graf4na",
}
"""A value for each variable without a default."""


class MissingVariable(Exception):
    """A required variable has no value. `docker compose` would report it and start nothing."""


def load(environment: Mapping[str, str] = EXAMPLE_VALUES) -> dict[str, Any]:
    """Return the whole file with these variables. A variable that a service passes on appears only if it is among them.

    Raises:
        MissingVariable: a required variable is missing.
    """
    return {name: _filled_in(part, environment) for name, part in _read().items() if not name.startswith("x-")}


@functools.cache
def _read() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text("utf-8"))
    return read


def passed_on() -> dict[str, set[str]]:
    """Service → variables that it gets only if the environment or .env sets them."""
    return {
        name: {variable for variable, value in service.get("environment", {}).items() if value is None}
        for name, service in _read()["services"].items()
    }


def services(environment: Mapping[str, str] = EXAMPLE_VALUES) -> dict[str, dict[str, Any]]:
    """Name → service."""
    found: dict[str, dict[str, Any]] = load(environment)["services"]
    return found


def fill_in(text: str, environment: Mapping[str, str]) -> str:
    """Return `text` with variables replaced by their values.

    Raises:
        MissingVariable: a required variable is missing.
    """

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if given := environment.get(match["name"]):
            return given
        if match["sign"] == ":-":
            return match["text"]
        raise MissingVariable(f"{match['name']}: {match['text']}")

    return VARIABLE.sub(value, text)


def _filled_in(part: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(part, dict):
        return {
            name: _environment(each, environment) if name == "environment" else _filled_in(each, environment)
            for name, each in part.items()
        }
    if isinstance(part, list):
        return [_filled_in(each, environment) for each in part]
    return fill_in(part, environment) if isinstance(part, str) else part


def _environment(given: Mapping[str, str | None], environment: Mapping[str, str]) -> dict[str, str]:
    passed = {name: environment[name] for name, value in given.items() if value is None and name in environment}
    return {name: fill_in(value, environment) for name, value in given.items() if value is not None} | passed
