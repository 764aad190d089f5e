"""`model-serving init`: writes serving.toml."""

import json
import sys

import click

from cli.configuration import FILE, OPTIONS, given_options, settings_options
from scoring.errors import StorageError

HEADER = "# Settings of model-serving. docs/settings.md lists them; SERVING_ variables and options take precedence.\n"
EPILOG = """
\b
Example:
  model-serving init --model churn --features ~/features --mlflow http://mlflow:5000
"""


@click.command(epilog=EPILOG)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@settings_options
def init(force: bool) -> None:
    """Write the settings to serving.toml in this folder.

    On a terminal it asks for the model, the registry and the Feast repository, unless an option gives them.
    """
    from scoring.files.atomic import whole_file
    from scoring.settings import Settings, variable_names

    if FILE.exists() and not force:
        raise click.UsageError(f"{FILE} exists: edit it, or replace it with --force")
    values = given_options()
    defaults = {"model_name": None, "mlflow_tracking_uri": "sqlite:///mlflow.db", "feature_repo": "feature_repo"}
    for field, text in OPTIONS.values():
        if field in defaults and field not in values:
            if sys.stdin.isatty():
                values[field] = click.prompt(text.partition(" [")[0].rstrip("."), default=defaults[field])
            elif defaults[field] is None:
                raise click.UsageError("Give the registered model with --model")
    variables = variable_names()
    Settings.from_environment({variables[field]: value for field, value in values.items() if field in variables})
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
    try:
        with whole_file(FILE) as part:
            part.write_text(HEADER + "".join(lines), "utf-8")
        FILE.chmod(0o600)  # it may have keys and passwords
    except OSError as error:
        raise StorageError("writing", str(FILE), error) from None
    click.echo(f"Wrote {FILE}. Next: model-serving check")
