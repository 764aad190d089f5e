"""The Feast feature store as a whole: open it, apply its definitions, name their state, fill the online store."""

import contextlib
import copy
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from scoring.errors import FeatureStoreError
from scoring.feast_import import import_feast
from scoring.redis_timeouts import bound_redis_reads
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore


BEFORE_ALL_ROWS = datetime(1970, 1, 1, tzinfo=UTC)


class AppliedDefinitions(msgspec.Struct, frozen=True):
    """What the Feast registry holds after an apply."""

    project: str
    hash: str
    """SHA-256 over the definitions' own content, hex: the same for the same definitions on any machine."""
    entities: tuple[str, ...]
    feature_views: tuple[str, ...]
    feature_services: tuple[str, ...]


class Watermark(msgspec.Struct, frozen=True):
    """Up to when a feature view's rows are in the online store. `until` is None where nothing was materialized yet."""

    feature_view: str
    until: datetime | None


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
            named["offline_store"] = {"type": "scoring.no_offline_store.NoOfflineStore"}
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


def materialize_online_store(store: "FeatureStore", until: datetime, *, everything: bool = False) -> list[Watermark]:
    """Copy what is new in the offline store, up to `until` (with a time zone), to the online store.

    With `everything`, all that is not older than its view's time to live is copied, whatever was copied before: for an
    online store that lost what it had, of which the watermarks in Feast's registry know nothing.

    Feast's own materialize-incremental: it goes on from each view's watermark and moves it once all rows are written.
    Where feature_store.yaml names no batch engine, rows go through this project's (`scoring.materialization`), which
    writes the same faster. Returns the new watermarks.

    Raises:
        FeatureStoreError: a source can't be read or the online store can't be written. A retry goes on from the old
            watermark.
    """
    try:
        with inside(Path(store.repo_path)), contextlib.redirect_stdout(io.StringIO()):
            _materialize_in_slices(store)
            if everything:
                for view in store.list_batch_feature_views():
                    if view.online:
                        store.materialize(
                            until - view.ttl if view.ttl else BEFORE_ALL_ROWS, until, feature_views=[view.name]
                        )
            else:
                store.materialize_incremental(end_date=until)
    except Exception as error:
        raise FeatureStoreError("materializing the online store", error) from error
    store.refresh_registry()
    return read_watermarks(store)


def _materialize_in_slices(store: "FeatureStore") -> None:
    """Put this project's batch engine in the place of Feast's local one; leave any other that was chosen."""
    from feast.infra.compute_engines.local.compute import LocalComputeEngine
    from feast.infra.passthrough_provider import PassthroughProvider

    provider = store.provider
    if not isinstance(provider, PassthroughProvider):
        return
    engine = provider.batch_engine
    if type(engine) is LocalComputeEngine and engine.backend_name is None:
        from scoring.materialization import StreamingComputeEngine

        provider._batch_engine = StreamingComputeEngine(
            repo_config=store.config, offline_store=provider.offline_store, online_store=provider.online_store
        )


def read_watermarks(store: "FeatureStore") -> list[Watermark]:
    """How far each feature view with an online store is materialized, by name."""
    views = sorted(store.list_batch_feature_views(), key=lambda view: view.name)
    return [
        Watermark(view.name, max((end for _, end in view.materialization_intervals), default=None))
        for view in views
        if view.online
    ]


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


@contextlib.contextmanager
def inside(repository: Path) -> Iterator[None]:
    """Work from inside the Feast repository: its folder is the working directory and importable, in this block."""
    # Feast imports definitions relative to the working directory and its duckdb store reads relative source paths from
    # there (feast 0.67). What was imported is forgotten, so that a second apply in one process sees changed files.
    before = set(sys.modules)
    old_path, old_folder, old_bytecode = list(sys.path), Path.cwd(), sys.dont_write_bytecode
    sys.path.insert(0, str(repository))
    os.chdir(repository)
    try:
        yield
    finally:
        os.chdir(old_folder)
        sys.path[:] = old_path
        sys.dont_write_bytecode = old_bytecode
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).is_relative_to(repository):
                del sys.modules[name]
