"""The Feast feature store as a whole: open it, apply its definitions, name their state, fill the online store."""

import contextlib
import copy
import hashlib
import io
import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from scoring.errors import FeatureStoreError
from scoring.features.redis_timeouts import bound_redis_reads
from scoring.imports import import_feast, inside
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore


class AppliedDefinitions(msgspec.Struct, frozen=True):
    """What the Feast registry holds after an apply."""

    project: str
    hash: str
    """SHA-256 over the definitions' own content, hex: the same for the same definitions on any machine."""
    entities: tuple[str, ...]
    feature_views: tuple[str, ...]
    feature_services: tuple[str, ...]


def open_feature_store(settings: Settings, *, online_only: bool = False) -> "FeatureStore":
    """The Feast store that the settings name; opens no connection yet.

    Args:
        settings: where its configuration is.
        online_only: without the offline store that it names, whose libraries then need not be installed.

    Raises:
        FeatureStoreError: no such folder or file, a variable that it names is not set, or a configuration that Feast
            refuses.
    """
    import_feast()
    from feast import FeatureStore, RepoConfig

    configuration = settings.feature_repo / settings.feature_store_yaml
    if not configuration.is_file():
        raise FeatureStoreError(
            f"opening {configuration}",
            "there is no such file: set SERVING_FEATURE_REPO and SERVING_FEATURE_STORE_YAML.",
        )
    repository = settings.feature_repo.resolve()
    try:
        named = _read_configuration(configuration)
        if online_only:
            named["offline_store"] = {"type": "scoring.feast_plugins.no_offline_store.NoOfflineStore"}
        config = RepoConfig(**named)
        config.repo_path = repository
        return FeatureStore(repo_path=str(repository), config=config)
    except FeatureStoreError:
        raise
    except Exception as error:  # Feast raises pydantic's, yaml's and its own kinds
        raise FeatureStoreError(f"reading {configuration}", error) from error


def _read_configuration(configuration: Path) -> dict[str, Any]:
    # As Feast reads it, but that it leaves ${NAME} as it is where there is no such variable, and fails at the first use
    # (feast 0.67).
    import yaml

    text = os.path.expandvars(configuration.read_text("utf-8"))
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    missing = sorted(set(re.findall(r"\$\{(\w+)\}", "\n".join(lines))))
    if missing:
        raise FeatureStoreError(f"reading {configuration}", f"it needs the variable {', '.join(missing)}: set it.")
    named: dict[str, Any] = yaml.safe_load(text)
    return named


def apply_definitions(store: "FeatureStore") -> AppliedDefinitions:
    """Bring the Feast registry to what the repository's Python files define (as `feast apply`).

    Raises:
        FeatureStoreError: a definition does not import or Feast refuses it. The registry is then as it was.
    """
    from feast.repo_operations import apply_total

    repository, said = Path(store.repo_path), io.StringIO()
    try:
        with inside(repository), contextlib.redirect_stdout(said):
            apply_total(store.config, repository, skip_source_validation=False)
    except SystemExit as error:  # Feast prints why and ends the process where definitions clash (feast 0.67)
        reason = said.getvalue().strip().splitlines()
        raise FeatureStoreError(f"applying {repository}", reason[-1] if reason else "it gave no reason") from error
    except Exception as error:
        raise FeatureStoreError(f"applying {repository}", error) from error
    store.refresh_registry()
    return read_definitions(store)


def read_definitions(store: "FeatureStore") -> AppliedDefinitions:
    """What the Feast registry holds now, and its hash.

    Only definitions count for the hash: not when they were applied, nor how far the online store is materialized.
    """
    entities = sorted(store.list_entities(), key=lambda entity: entity.name)
    views = sorted(store.list_all_feature_views(), key=lambda view: view.name)
    services = sorted(store.list_feature_services(), key=lambda service: service.name)
    definitions: list[Any] = [*entities, *views, *services]
    digest = hashlib.sha256(store.project.encode())
    for definition in definitions:
        digest.update(_content(definition.to_proto().spec))
    return AppliedDefinitions(
        project=store.project,
        hash=digest.hexdigest(),
        entities=tuple(entity.name for entity in entities),
        feature_views=tuple(view.name for view in views),
        feature_services=tuple(service.name for service in services),
    )


def freeze_definitions(store: "FeatureStore", read_timeout_s: float) -> "FeatureStore":
    """A store of its own on the definitions that `store`'s registry holds now, which never asks that registry again.

    No read of a Redis online store waits longer than `read_timeout_s`, unless its connection string says otherwise.

    For serving: Feast refreshes its copy of the registry inside whichever request finds it expired or its file changed,
    and all others wait behind its lock meanwhile (feast 0.67). Open another one when the definitions change.

    Raises:
        FeatureStoreError: the registry can't be read.
    """
    from feast import FeatureStore
    from feast.repo_config import RegistryConfig

    try:
        definitions = store.registry.proto().__deepcopy__()
        # A view's state says whether somebody materializes it at this moment. Feast refuses to read a view that is
        # being materialized or that never was (feast 0.67), although its rows are there, or are simply not found.
        for view in (
            *definitions.feature_views,
            *definitions.stream_feature_views,
            *definitions.on_demand_feature_views,
        ):
            view.meta.ClearField("state")
        with tempfile.TemporaryDirectory(prefix="definitions-") as folder:
            file = Path(folder) / "registry.db"
            file.write_bytes(definitions.SerializeToString())
            config = copy.deepcopy(store.config)
            bound_redis_reads(config, read_timeout_s)
            config._registry = RegistryConfig(  # type: ignore[assignment]  # Feast declares None only
                path=str(file),
                cache_ttl_seconds=0,  # never expires
                cache_mode="thread",  # "sync" would look at the file again in every request
                enable_online_feature_view_versioning=store.config.registry.enable_online_feature_view_versioning,
            )
            frozen = FeatureStore(repo_path=str(store.repo_path), config=config)
            # Both are made at first use: here, and not by two requests at once.
            _ = frozen.registry, frozen.provider
    except Exception as error:
        raise FeatureStoreError("reading its registry", error) from error
    return frozen


def _content(spec: Any) -> bytes:
    from google.protobuf.json_format import MessageToDict

    return json.dumps(_lasting(MessageToDict(spec)), sort_keys=True).encode()


def _lasting(value: Any) -> Any:
    """What a definition says that does not change by itself."""
    if isinstance(value, dict):
        # The data sources inside a view's or a service's definition carry when they were created and last applied. A
        # function is pickled anew whenever a definition is read, with another order in each process (feast 0.67).
        passing = {"createdTimestamp", "lastUpdatedTimestamp", *(["body"] if value.get("bodyText") else [])}
        return {name: _lasting(each) for name, each in value.items() if name not in passing}
    return [_lasting(each) for each in value] if isinstance(value, list) else value
