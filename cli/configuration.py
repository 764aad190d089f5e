"""The settings of a subcommand: from its options, then SERVING_ variables, then serving.toml."""

import difflib
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.display import Command
from scoring.errors import ArgumentError, SettingsError

if TYPE_CHECKING:
    from scoring.settings import Settings

FILE = Path("serving.toml")
# Option → the field of `Settings` that it sets. Where the same values are in serving.toml, the field is the key.
OPTIONS = {
    "--model": ("model_name", "Registered model."),
    "--alias": ("model_alias", "Alias that batch and online follow. [default: champion]"),
    "--mlflow": ("mlflow_tracking_uri", "MLflow server or database. [default: sqlite:///mlflow.db]"),
    "--features": ("feature_repo", "Folder of the Feast repository. [default: feature_repo]"),
}
# Options of one subcommand each.
SUBCOMMAND_OPTIONS = {"--engine": "batch_engine", "--host": "host", "--port": "port"}
# A key of serving.toml that is not a setting of `scoring`.
DAGSTER_HOME_KEY = "dagster_home"
DAGSTER_HOME = "DAGSTER_HOME"


def settings_options(command: Command) -> Command:
    """Add the options that set settings, and `--set` for all others."""
    more = click.option(
        "--set", "others", metavar="NAME=VALUE", multiple=True, expose_value=False, callback=_keep_others,
        help="Any other setting, for example missing_features=reject.",
    )  # fmt: skip
    command = more(command)
    for name, (_, text) in reversed(OPTIONS.items()):
        command = click.option(name, expose_value=False, callback=_keep, help=text)(command)
    return command


def setting_option(name: str, **attributes: Any) -> Callable[[Command], Command]:
    """Return a decorator that adds an option of SUBCOMMAND_OPTIONS."""
    return click.option(name, expose_value=False, callback=_keep, **attributes)


def given_options() -> dict[str, str]:
    """Return field → value of the options that were given.

    Raises:
        SettingsError: --set names something that is not a setting.
    """
    return {_field(name, name): value for name, value in _options().items()}


def configuration() -> "tuple[dict[str, str], Settings]":
    """Return the settings of the current subcommand, and before them this process's environment with all of them.

    Raises:
        ArgumentError: no model is set.
        SettingsError: a setting is unknown or invalid. The message names the option, the variable, or serving.toml.
    """
    from scoring.settings import PREFIX, Settings

    variables = _variables()
    places: dict[str, str] = {}
    found = dict(os.environ)
    for name, value in _from_file().items():
        variable = variables[_field(name, f"{FILE}: {name}")]
        if not os.environ.get(variable, "").strip():
            found[variable], places[variable] = value, f"{FILE}: {name}"
    for name, value in _options().items():
        variable = variables[_field(name, name)]
        found[variable], places[variable] = value, name
    try:
        return found, Settings.from_environment(found)
    except SettingsError as error:
        variable, _, problem = str(error).partition(" ")
        if variable == f"{PREFIX}MODEL_NAME" and variable not in places:
            problem = "No model is set: use --model, or write serving.toml with `model-serving init`."
            raise ArgumentError(problem) from None
        raise SettingsError(places.get(variable, variable), problem) from None


def _variables() -> dict[str, str]:
    from scoring.settings import variable_names

    return variable_names() | {DAGSTER_HOME_KEY: DAGSTER_HOME}


def _field(name: str, place: str) -> str:
    """Return the field that an option or a key of the file sets; `place` names it in the error."""
    field = SUBCOMMAND_OPTIONS.get(name) or OPTIONS.get(name, (name.removeprefix("--set "),))[0]
    known = _variables()
    if field not in known:
        near = difflib.get_close_matches(field, known, n=1)
        hint = f": did you mean {near[0]}?" if near else "; docs/settings.md lists them all."
        raise SettingsError(place, f"is not a setting{hint}")
    return field


def _from_file() -> dict[str, str]:
    try:
        found = tomllib.loads(FILE.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(str(FILE), f"can't be read ({error}).") from None
    return {name: _as_variable(name, value) for name, value in found.items()}


def _as_variable(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return str(Path(value).expanduser()) if value.startswith("~/") else value
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return ",".join(_as_variable(name, each) for each in value)
    if isinstance(value, dict):
        import msgspec

        return msgspec.json.encode(value).decode()
    raise SettingsError(f"serving.toml: {name}", "is a date or time; no setting takes one.")


def _options() -> dict[str, str]:
    options: dict[str, str] = click.get_current_context().meta.get(__name__, {})
    return options


def _keep(context: click.Context, option: click.Parameter, value: object) -> None:
    if value is not None:
        context.meta.setdefault(__name__, {})[option.opts[0]] = str(value)


def _keep_others(context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> None:
    for each in values:
        name, separator, value = each.partition("=")
        if not separator:
            raise click.UsageError(f"--set {each} is not NAME=VALUE.", context)
        context.meta.setdefault(__name__, {})[f"--set {name.strip().lower()}"] = value
