"""Settings are read once, and a wrong value is one line that names the variable."""

from pathlib import Path

import pytest

from scoring.errors import SettingsError
from scoring.settings import Settings, variable_names

MINIMAL = {"SERVING_MODEL_NAME": "ranker"}


def test_only_the_model_name_is_required() -> None:
    settings = Settings.from_environment(MINIMAL)
    assert settings.model_name == "ranker"
    assert settings.model_alias == "champion"
    assert settings.host == "127.0.0.1"
    assert settings.port == 8172
    assert settings.missing_features == "exclude"


def test_without_a_model_name_the_variable_is_named() -> None:
    with pytest.raises(SettingsError, match=r"^SERVING_MODEL_NAME is not set"):
        Settings.from_environment({})


def test_values_are_converted_to_their_types() -> None:
    settings = Settings.from_environment(
        MINIMAL
        | {
            "SERVING_PORT": "9000",
            "SERVING_DEADLINE_S": "0.5",
            "SERVING_FEATURE_REPO": "elsewhere",
            "SERVING_MODEL_FORMATS": "skops, cloudpickle",
            "SERVING_IMPUTE_VALUES": '{"a": 0.5, "b": null}',
            "SERVING_OUTPUT_COLUMN": "1",
            "SERVING_REQUEST_INPUTS": "amount,hour",
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        }
    )
    assert settings.port == 9000
    assert settings.deadline_s == 0.5
    assert settings.feature_repo == Path("elsewhere")
    assert settings.model_formats == ("skops", "cloudpickle")
    assert settings.impute_values == {"a": 0.5, "b": None}
    assert settings.output_column == 1
    assert settings.request_inputs == ("amount", "hour")
    assert settings.registry_uri == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("SERVING_PORT", "eighty", "an integer"),
        ("SERVING_PORT", "70000", "65535"),
        ("SERVING_DEADLINE_S", "-1", "> 0"),
        ("SERVING_MISSING_FEATURES", "ignore", "exclude | reject | impute"),
        ("SERVING_MODEL_FORMATS", "skops,joblib", "skops | cloudpickle | pickle"),
        ("SERVING_IMPUTE_VALUES", "0.5", "a JSON object"),
        ("SERVING_OUTPUT_COLUMN", "-1", ">= 0"),
    ],
)
def test_a_wrong_value_names_variable_value_and_what_is_allowed(variable: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(MINIMAL | {variable: value})
    text = str(caught.value)
    assert text.startswith(f"{variable} is {value!r}")
    assert allowed in text
    assert "\n" not in text


def test_a_misspelt_variable_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        SettingsError, match=r"SERVING_MISING_FEATURES is not a setting: did you mean SERVING_MISSING_FEAT"
    ):
        Settings.from_environment(MINIMAL | {"SERVING_MISING_FEATURES": "reject"})


def test_the_schedule_of_the_replay_needs_a_prediction_log() -> None:
    environment = {"SERVING_MODEL_NAME": "m", "SERVING_SCHEDULES": "daily_everyone,daily_replay"}
    with pytest.raises(SettingsError, match=r"SERVING_SCHEDULES names daily_replay, .*: set SERVING_PREDICTION_LOG"):
        Settings.from_environment(environment)
    with_log = environment | {"SERVING_PREDICTION_LOG": "log"}
    assert Settings.from_environment(with_log).schedules == ("daily_everyone", "daily_replay")


def test_an_empty_value_counts_as_not_set() -> None:
    assert Settings.from_environment(MINIMAL | {"SERVING_PORT": ""}).port == 8172


def test_other_variables_are_left_alone() -> None:
    others = {"HOME": "/root", "MODEL_NAME": "other", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    assert Settings.from_environment(MINIMAL | others) == Settings.from_environment(MINIMAL)


def test_every_field_has_its_own_variable() -> None:
    names = variable_names()
    assert len(set(names.values())) == len(names)


def test_an_invalid_spark_configuration_is_not_quoted_because_it_may_have_secrets() -> None:
    with pytest.raises(SettingsError, match=r"^SERVING_SPARK_CONF is invalid: it must be a JSON object") as caught:
        Settings.from_environment(
            MINIMAL | {"SERVING_SPARK_CONF": '{"spark.hadoop.fs.s3a.secret.key": "hunter2", "spark.executor.cores": 2}'}
        )
    assert "hunter2" not in str(caught.value)


def test_settings_show_no_secret_when_they_are_printed() -> None:
    settings = Settings(
        model_name="m",
        mlflow_tracking_uri="http://user:hunter2@mlflow:5000",
        spark_conf={"spark.hadoop.fs.s3a.secret.key": "hunter2"},
    )
    assert "hunter2" not in repr(settings)
    assert "http://mlflow:5000" in repr(settings)
    assert "spark.hadoop.fs.s3a.secret.key" in repr(settings)
