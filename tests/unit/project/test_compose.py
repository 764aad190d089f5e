"""docker-compose.yml, the files that it mounts and .env.example agree with each other, the settings and the metrics."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from litestar.testing import TestClient
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import AuthenticationError
from redis.retry import Retry

from api.app import create_app
from scoring.files.location import Location
from scoring.settings import Settings, variable_names
from tests.support.api_client import when_ready
from tests.support.certificates import write_certificate
from tests.support.compose import (
    COMPOSE_FILE,
    EXAMPLE_FILE,
    EXAMPLE_VALUES,
    ROOT,
    VARIABLE,
    MissingVariable,
    load,
    passed_on,
    services,
)
from tests.support.fakes import FakeLoader, FakeScorer
from tests.support.servers import free_port, nginx_program, redis_program

DEPLOY = ROOT / "deploy"
NAMES = [
    "postgres", "redis", "s3", "mlflow", "code-location", "webserver", "daemon", "api", "proxy",
    "prometheus", "grafana",
]  # fmt: skip
# Keys of the Compose specification in use: Compose ignores or refuses a misspelled one.
KEYS = {
    "image", "build", "user", "command", "entrypoint", "environment", "volumes", "tmpfs", "shm_size", "healthcheck",
    "stop_signal", "stop_grace_period", "deploy", "depends_on", "networks", "ports", "profiles", "container_name",
    "restart", "init", "read_only", "cap_drop", "security_opt", "logging",
}  # fmt: skip
NOT_IN_ENV = {
    "SERVING_ALLOW_ANONYMOUS": "keys are required: the API listens beyond loopback",
    "SERVING_BODY_TIMEOUT_S": "the proxy buffers each body before it forwards the request",
}
"""Setting that neither .env nor docker-compose.yml sets → why."""
SECRET_NAME = re.compile(r"PASSWORD|SECRET|_KEYS?$")


def used_variables() -> list[re.Match[str]]:
    text = "\n".join(line.partition(" # ")[0] for line in COMPOSE_FILE.read_text().splitlines())
    return [match for match in VARIABLE.finditer(text) if match["name"]]


def documented_variables() -> dict[str, tuple[str, bool]]:
    """Variable of .env.example → its value, and whether its line is a comment."""
    found = re.findall(r"^(#?)([A-Z0-9_]+)=(.*)$", EXAMPLE_FILE.read_text(), re.MULTILINE)
    return {name: (value, bool(comment)) for comment, name, value in found}


def test_the_file_has_every_service_and_uses_only_known_keys() -> None:
    assert list(services()) == NAMES
    assert set().union(*services().values()) <= KEYS
    assert set(load()) == {"name", "services", "networks", "volumes"}


@pytest.mark.parametrize("name", NAMES)
class TestEachService:
    def test_pins_its_image_by_an_exact_tag_and_has_a_health_check(self, name: str) -> None:
        image = services()[name]["image"]
        assert re.search(r"\d+\.\d+\.\d+|^\d+\.\d+-", image.rpartition(":")[2]), image
        assert "latest" not in image
        check = services()[name]["healthcheck"]
        assert check["test"][0] in {"CMD", "CMD-SHELL"}
        assert {"interval", "timeout", "retries", "start_period"} <= set(check)

    def test_publishes_ports_on_loopback_only_restarts_and_has_limits(self, name: str) -> None:
        service = services()[name]
        for port in service.get("ports", []):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
        assert service["restart"] == "unless-stopped"
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} == set(limits)
        assert service["logging"]["options"]["max-size"]

    def test_has_no_privileges(self, name: str) -> None:
        service = services()[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        # Our images set their user. The S3 store's image has only root; without capabilities, that root can do no more
        # than the owner of its volume.
        assert "build" in service or name == "s3" or service["user"] not in {"root", "0", "0:0"}

    def test_starts_after_its_dependencies_are_healthy(self, name: str) -> None:
        for needed, how in services()[name].get("depends_on", {}).items():
            assert needed in NAMES[: NAMES.index(name)]  # so there is no circle
            assert how["condition"] == "service_healthy"

    def test_mounts_declared_volumes_and_existing_files(self, name: str) -> None:
        for volume in services()[name].get("volumes", []):
            source, target, *mode = volume.split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (ROOT / source).exists()
                assert mode == ["ro"]
            else:
                assert source in load()["volumes"]


def test_only_the_user_facing_services_publish_ports() -> None:
    published = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert set(published) == {"webserver", "proxy", "prometheus", "grafana"}
    assert load()["networks"]["inside"] == {"internal": True}
    for name, service in services().items():
        assert service["networks"] == (["inside", "published"] if name in published else ["inside"])


def test_every_volume_is_used() -> None:
    used = {volume.partition(":")[0] for service in services().values() for volume in service.get("volumes", [])}
    assert set(load()["volumes"]) <= used


def test_one_daemon_and_at_least_two_api_replicas_run() -> None:
    assert services()["daemon"]["container_name"]  # which Compose refuses to scale
    assert services()["daemon"]["deploy"]["replicas"] == 1
    assert int(services()["api"]["deploy"]["replicas"]) >= 2
    assert "container_name" not in services()["api"]


def test_every_variable_is_documented_with_its_default() -> None:
    defaults = {match["name"]: match["text"] if match["sign"] == ":-" else None for match in used_variables()}
    documented = documented_variables()
    passed = set().union(*passed_on().values())
    assert defaults == {
        name: value if commented else None for name, (value, commented) in documented.items() if name not in passed
    }
    defaults_of_settings = Settings(model_name="m")
    example = {name: value for name, (value, commented) in documented.items() if name in passed and commented}
    assert set(example) == passed
    assert Settings.from_environment(example | {"SERVING_MODEL_NAME": "m"}) == defaults_of_settings


def test_the_example_names_every_setting() -> None:
    named = set(re.findall(r"[A-Z][A-Z0-9_]+", EXAMPLE_FILE.read_text()))
    assert set(variable_names().values()) - named == set()


def test_every_setting_is_set_or_configurable_except_for_a_listed_reason() -> None:
    chosen = {variable for name in ("api", "code-location") for variable in services()[name]["environment"]}
    settings = {variable for variable in variable_names().values() if variable.startswith("SERVING_")}
    assert settings - chosen - set().union(*passed_on().values()) == set(NOT_IN_ENV)


def test_an_optional_variable_is_passed_on_only_if_it_is_set() -> None:
    assert "SERVING_MAX_NULL_RATE" not in services()["code-location"]["environment"]
    given = services(EXAMPLE_VALUES | {"SERVING_MAX_NULL_RATE": "0.5", "SERVING_OUTPUT_COLUMN": "1"})
    assert given["code-location"]["environment"]["SERVING_MAX_NULL_RATE"] == "0.5"
    assert "SERVING_MAX_NULL_RATE" not in given["api"]["environment"]
    for name in ("api", "code-location"):
        assert Settings.from_environment(given[name]["environment"]).output_column == 1


@pytest.mark.parametrize("variable", EXAMPLE_VALUES)
def test_a_missing_required_variable_is_an_error_that_names_it(variable: str) -> None:
    for value in ({}, {variable: ""}):
        with pytest.raises(MissingVariable, match=f"^{variable}: .{{10,}}"):
            load({name: given for name, given in EXAMPLE_VALUES.items() if name != variable} | value)


def test_no_password_has_a_default() -> None:
    secrets = [match for match in used_variables() if SECRET_NAME.search(match["name"])]
    assert len({match["name"] for match in secrets}) >= 10
    assert {match["sign"] for match in secrets} == {":?"}
    for name, (value, _) in documented_variables().items():
        assert not (SECRET_NAME.search(name) and value), name
    for service in services().values():
        for name, value in service.get("environment", {}).items():
            assert not SECRET_NAME.search(name) or value in EXAMPLE_VALUES.values(), name


def test_each_service_gets_only_the_secrets_that_it_needs() -> None:
    have = {
        name: {key for key, secret in EXAMPLE_VALUES.items() if secret in json.dumps(service.get("environment", {}))}
        - {"SERVING_MODEL_NAME"}
        for name, service in services().items()
    }
    stores = {"FEAST_DB_PASSWORD", "REDIS_PASSWORD"}
    s3 = {"S3_ACCESS_KEY", "S3_SECRET_KEY"}
    assert have == {
        "postgres": {"POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "DAGSTER_DB_PASSWORD", "FEAST_DB_PASSWORD"},
        "redis": {"REDIS_PASSWORD"},
        "s3": s3,
        "mlflow": s3 | {"MLFLOW_DB_PASSWORD", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"},
        "code-location": s3 | stores | {"DAGSTER_DB_PASSWORD"},
        "webserver": {"DAGSTER_DB_PASSWORD"},
        "daemon": {"DAGSTER_DB_PASSWORD"},
        "api": s3 | stores | {"SERVING_API_KEYS", "SERVING_WEBHOOK_SECRET"},
        "proxy": set(),
        "prometheus": set(),
        "grafana": {"GRAFANA_ADMIN_PASSWORD"},
    }


@pytest.mark.parametrize("name", ["api", "code-location"])
def test_the_serving_variables_are_valid_settings(name: str) -> None:
    environment = services()[name]["environment"]
    assert {key for key in environment if key.startswith("SERVING_")} <= set(variable_names().values())
    settings = Settings.from_environment(environment)
    assert settings.model_name == "driver_ranker"
    assert (ROOT / "feature_repo" / settings.feature_store_yaml).is_file()


def test_batch_and_online_get_the_same_model_and_features() -> None:
    online, batch = services()["api"]["environment"], services()["code-location"]["environment"]
    shared = set(online) & set(batch)
    assert {name: online[name] for name in shared} == {name: batch[name] for name in shared}
    assert {"MLFLOW_TRACKING_URI", "FEAST_REGISTRY", "FEAST_REDIS", "SERVING_MODEL_NAME"} <= shared


def test_the_grace_period_covers_the_longest_request() -> None:
    settings = Settings.from_environment(services()["api"]["environment"])
    proxy = (DEPLOY / "nginx" / "nginx.conf").read_text()
    longest_deadline_s, longest_bulk_s = map(float, re.findall(r"proxy_read_timeout (\d+)s;", proxy))
    assert f"may take, less than {longest_deadline_s:g}: the proxy waits no longer" in EXAMPLE_FILE.read_text()
    assert settings.bulk_deadline_s < longest_bulk_s
    needed_s = settings.drain_s + settings.body_timeout_s + longest_bulk_s + 15
    assert float(services()["api"]["stop_grace_period"].removesuffix("s")) > needed_s


def test_every_address_names_a_service_and_its_port() -> None:
    api = services()["api"]["environment"]
    workspace = yaml.safe_load((DEPLOY / "workspace.yaml").read_text())
    server = workspace["load_from"][0]["grpc_server"]
    assert server["host"] in NAMES
    assert f"--port={server['port']}" in services()["code-location"]["command"]
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][0]
    assert (scrape["names"], str(scrape["port"])) == (["api"], api["SERVING_PORT"])
    assert f"server api:{api['SERVING_PORT']} " in (DEPLOY / "nginx" / "upstream.conf").read_text()
    assert api["MLFLOW_TRACKING_URI"].removeprefix("http://") in services()["mlflow"]["environment"][
        "MLFLOW_SERVER_ALLOWED_HOSTS"
    ].split(",")


def test_dagster_accepts_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dagster._core.instance.config import dagster_instance_config

    for name, value in services()["daemon"]["environment"].items():
        monkeypatch.setenv(name, value)
    shutil.copy(DEPLOY / "dagster.yaml", tmp_path)
    config, _ = dagster_instance_config(str(tmp_path))
    assert set(config["storage"]) == {"postgres"}
    assert config["telemetry"] == {"enabled": False}
    assert config["run_monitoring"]["enabled"] is True
    assert config["run_retries"]["enabled"] is True
    assert config["concurrency"]["runs"]["max_concurrent_runs"] > 0
    assert set(config["retention"]) == {"schedule", "sensor"}


def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    nginx = nginx_program()
    # upstream.conf needs Docker's DNS server and a newer nginx than Debian's.
    (tmp_path / "upstream.conf").write_text("upstream api { server 127.0.0.1:8172; keepalive 64; }")
    shutil.copy(DEPLOY / "nginx" / "nginx.conf", tmp_path)
    shutil.copytree(DEPLOY / "nginx" / "tls.d", tmp_path / "tls.d")
    write_certificate(tmp_path)
    tls = tmp_path / "tls.d" / "tls.conf"
    tls.write_text(tls.read_text().replace("/etc/nginx/tls", str(tmp_path)))
    result = subprocess.run([nginx, "-t", "-c", tmp_path / "nginx.conf"], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_redis_starts_with_its_configuration_and_requires_the_password(tmp_path: Path) -> None:
    shell, option, script = services()["redis"]["command"]
    shutil.copy(DEPLOY / "redis.conf", tmp_path)
    here = tmp_path / "redis.conf"
    port = free_port()
    here.write_text(here.read_text().replace("port 6379", f"port {port}").replace("/data", str(tmp_path)))
    script = script.replace("/etc/redis.conf", str(here))
    path = f"{os.environ['PATH']}:{Path(redis_program()).parent}"
    process = subprocess.Popen([shell, option, script], env={"REDIS_PASSWORD": "red1s", "PATH": path})
    try:
        with Redis(port=port, password="red1s", retry=Retry(ConstantBackoff(0.1), 50)) as client:
            assert client.ping()
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with Redis(port=port) as client, pytest.raises(AuthenticationError):
            client.ping()
    finally:
        process.terminate()
        assert process.wait(10) == 0  # the shell has exec'd Redis, which received the signal


def test_prometheus_accepts_its_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:  # a large package for one check; the tests below check the metrics
        return
    for arguments in (
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["check", "rules", "alerts.yml"],
        ["test", "rules", ROOT / "tests" / "unit" / "project" / "alerts.yml"],
    ):
        result = subprocess.run([promtool, *arguments], cwd=DEPLOY, check=False, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every sample name that /metrics can export."""
    settings = Settings(model_name="m", prediction_log=Location(tmp_path_factory.mktemp("log")))
    with TestClient(create_app(settings, FakeLoader(FakeScorer(7)), None, FakeLoader(FakeScorer(8)))) as client:
        when_ready(client)
        families = list(text_string_to_metric_families(client.get("/metrics").text))
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + ending for family in families for ending in endings.get(family.type, ("",))} | {"up"}


def expressions() -> Iterator[str]:
    dashboard: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "serving.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def test_dashboard_and_alerts_query_only_exported_metrics_and_every_one_of_ours(exported: set[str]) -> None:
    asked = set()
    for expression in expressions():
        without_labels = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without) \([^)]*\)", "", expression)
        asked |= set(re.findall(r"\b(?:serving_\w+|process_\w+|python_\w+|up)\b", without_labels))
        left = re.sub(r"\b(serving_\w+|process_\w+|python_\w+|up)\b", "", without_labels)
        known = {
            "sum", "max", "rate", "increase", "histogram_quantile", "quantile_over_time", "count", "absent",
            "vector", "or",
        }  # fmt: skip
        assert set(re.findall(r"[a-zA-Z_]\w*", left)) <= known, expression
    assert asked <= exported
    ours = {name for name in exported if name.startswith("serving_") and not name.endswith(("_sum", "_count"))}
    assert ours <= asked, "a metric without a panel in deploy/grafana/dashboards/serving.json"


def test_grafana_has_its_data_source_and_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "serving.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    folder = yaml.safe_load((provisioning / "dashboards" / "serving.yml").read_text())["providers"][0]["options"][
        "path"
    ]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in services()["grafana"]["volumes"]


class TestTheImages:
    DOCKERFILE = (ROOT / "Dockerfile").read_text()

    def test_are_built_on_the_base_image_of_the_compose_file(self) -> None:
        base = services()["api"]["build"]["args"]["BASE_IMAGE"]
        assert f"ARG BASE_IMAGE={base}\n" in self.DOCKERFILE
        assert set(re.findall(r"^FROM (\S+)", self.DOCKERFILE, re.MULTILINE)) == {"${BASE_IMAGE}", "installer", "base"}

    @pytest.mark.parametrize("target", ["api", "batch"])
    def test_run_as_a_non_root_user_with_a_health_check(self, target: str) -> None:
        stage = re.split(r"^FROM ", self.DOCKERFILE, flags=re.MULTILINE)
        (own,) = [text for text in stage if text.startswith(f"base AS {target}\n")]
        assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", own, re.MULTILINE)
        assert "HEALTHCHECK" in own
        assert f"COPY --from={target}-packages /opt/venv /opt/venv" in own

    def test_get_no_secret_and_no_local_state(self) -> None:
        sent = (ROOT / ".dockerignore").read_text().splitlines()
        assert sent.index("*") < sent.index("!scoring")
        assert not {"!.env", "!var", "!."} & set(sent)
        assert "feature_repo/data" in sent

    def test_copy_only_existing_files(self) -> None:
        for line in re.findall(r"^COPY (?!--from)(.+)$", self.DOCKERFILE, re.MULTILINE):
            for source in line.split()[:-1]:
                assert list(ROOT.glob(source)), source
