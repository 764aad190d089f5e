"""Opens the Feast feature store, applies its definitions, and reads or freezes their state."""

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
from scoring.feast_plugins.redis_timeouts import bound_redis
from scoring.features.model_features import ModelFeatures
from scoring.imports import import_feast, inside
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore


class AppliedDefinitions(msgspec.Struct, frozen=True):
    """The definitions in the Feast registry."""

    project: str
    hash: str
    """SHA-256 of the definitions' content, hex. The same definitions have the same hash on any machine."""
    entities: tuple[str, ...]
    feature_views: tuple[str, ...]
    feature_services: tuple[str, ...]


def open_feature_store(settings: Settings, *, online_only: bool = False) -> "FeatureStore":
    """Return the Feast store that the settings name. It connects lazily.

    Args:
        settings: name the feature repository and its configuration.
        online_only: whether to ignore the configured offline store, so that its libraries need not be installed.

    Raises:
        FeatureStoreError: there is no such folder or file, a variable in it is not set, or Feast refuses it.
    """
    import_feast()
    from feast import FeatureStore, RepoConfig

    configuration = settings.feature_repo / settings.feature_store_yaml
    if not configuration.is_file():
        problem = "there is no such file: set SERVING_FEATURE_REPO and SERVING_FEATURE_STORE_YAML."
        raise FeatureStoreError(f"opening {configuration}", problem)
    repository = settings.feature_repo.resolve()
    try:
        options = _read_configuration(configuration)
        if online_only:
            options["offline_store"] = {"type": "scoring.feast_plugins.no_offline_store.NoOfflineStore"}
        config = RepoConfig(**options)
        config.repo_path = repository
        return FeatureStore(repo_path=str(repository), config=config)
    except FeatureStoreError:
        raise
    except Exception as error:  # Feast raises its own exceptions and those of pydantic and yaml
        raise FeatureStoreError(f"reading {configuration}", error) from error


def _read_configuration(configuration: Path) -> dict[str, Any]:
    # Read it like Feast, except that Feast keeps ${NAME} if there is no such variable, and fails at the first use
    # (feast 0.67).
    import yaml

    content = os.path.expandvars(configuration.read_text("utf-8"))
    lines = [line for line in content.splitlines() if not line.lstrip().startswith("#")]
    missing = sorted(set(re.findall(r"\$\{(\w+)\}", "\n".join(lines))))
    if missing:
        raise FeatureStoreError(f"reading {configuration}", f"it needs the variable {', '.join(missing)}: set it.")
    options: dict[str, Any] = yaml.safe_load(content)
    return options


def apply_definitions(store: "FeatureStore") -> AppliedDefinitions:
    """Apply the definitions in the repository's Python files to the Feast registry (as `feast apply`).

    Raises:
        FeatureStoreError: a definition can't be imported or Feast refuses it. The registry is then unchanged.
    """
    from feast.repo_operations import apply_total

    repository, printed = Path(store.repo_path), io.StringIO()
    try:
        with inside(repository), contextlib.redirect_stdout(printed):
            apply_total(store.config, repository, skip_source_validation=False)
    except SystemExit as error:  # if definitions clash, Feast prints the reason and exits (feast 0.67)
        reason = printed.getvalue().strip().splitlines()
        raise FeatureStoreError(f"applying {repository}", reason[-1] if reason else "it gave no reason") from error
    except Exception as error:
        raise FeatureStoreError(f"applying {repository}", error) from error
    store.refresh_registry()
    return read_definitions(store)


def read_definitions(store: "FeatureStore") -> AppliedDefinitions:
    """Read the current definitions in the Feast registry, and compute their hash.

    The hash covers only the definitions, not when they were applied or how far the online store is materialized.
    """
    digest = hashlib.sha256(store.project.encode())
    names: list[tuple[str, ...]] = []
    # The store's own list removes the entity of views without entities, also in the registry's cache (feast 0.67).
    views = store.registry.list_all_feature_views(store.project)
    kinds: Any = (store.list_entities(), views, store.list_feature_services())
    for kind in kinds:
        definitions = sorted(kind, key=lambda each: each.name)
        names.append(tuple(each.name for each in definitions))
        for definition in definitions:
            digest.update(_content(definition.to_proto().spec))
    return AppliedDefinitions(store.project, digest.hexdigest(), *names)


def definitions_read_by(features: ModelFeatures) -> str:
    """Return a hash of the definitions that decide what a model's features are: the views that it reads, and how they
    fill its inputs. Other views of the repository, or of the feature service, do not change it."""
    link = (features.features, features.views, features.join_keys, sorted(features.request_columns.items()))
    digest = hashlib.sha256(repr(link).encode())
    names = {view.name for view in features.views}
    views = [view for name, view in sorted(features.feast.views.items()) if name in names]
    for view in (*views, *features.feast.on_demand_views):
        digest.update(_content(view.to_proto().spec))
    return digest.hexdigest()


def freeze_definitions(store: "FeatureStore", read_timeout_s: float) -> "FeatureStore":
    """Return a separate store with the current definitions of `store`'s registry. It never reads that registry again.

    No read of a Redis online store waits longer than `read_timeout_s`, unless its connection string sets a timeout.

    Serving needs it because Feast refreshes its copy of the registry during the request that finds it expired or its
    file changed, and all other requests wait for its lock (feast 0.67). Freeze again when the definitions change.

    Raises:
        FeatureStoreError: the registry can't be read.
    """
    from feast import FeatureStore
    from feast.repo_config import RegistryConfig

    try:
        definitions = store.registry.proto().__deepcopy__()
        # A view's state indicates whether it is being materialized. Feast refuses to read a view that is, or that never
        # was (feast 0.67), although its rows exist, or would simply not be found.
        for kind in ("feature_views", "stream_feature_views", "on_demand_feature_views"):
            for view in getattr(definitions, kind):
                view.meta.ClearField("state")
        with tempfile.TemporaryDirectory(prefix="definitions-") as folder:
            file = Path(folder) / "registry.db"
            file.write_bytes(definitions.SerializeToString())
            config = copy.deepcopy(store.config)
            bound_redis(config, read_timeout_s)
            config._registry = RegistryConfig(  # type: ignore[assignment]  # Feast declares None only
                path=str(file),
                cache_ttl_seconds=0,  # never expires
                cache_mode="thread",  # "sync" would check the file again in every request
                enable_online_feature_view_versioning=store.config.registry.enable_online_feature_view_versioning,
            )
            frozen = FeatureStore(repo_path=str(store.repo_path), config=config)
            # Both are created at first use. Create them here, so that two requests do not create them at once.
            _ = frozen.registry, frozen.provider
    except Exception as error:
        raise FeatureStoreError("reading its registry", error) from error
    return frozen


def _content(spec: Any) -> bytes:
    from google.protobuf.json_format import MessageToDict

    return json.dumps(_lasting(MessageToDict(spec)), sort_keys=True).encode()


def _lasting(value: Any) -> Any:
    """Return the parts of a definition that change only if its author changes them."""
    if isinstance(value, dict):
        # Data sources inside a view or a service contain the times when they were created and last applied. A function
        # is pickled again whenever a definition is read, in another order in each process (feast 0.67).
        volatile = {"createdTimestamp", "lastUpdatedTimestamp", *(["body"] if value.get("bodyText") else [])}
        return {name: _lasting(each) for name, each in value.items() if name not in volatile}
    return [_lasting(each) for each in value] if isinstance(value, list) else value
