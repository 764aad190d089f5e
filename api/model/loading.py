"""Where the model version that serves comes from: what should serve now, and how it is made ready to."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from api.model.scorer import OnlineScorer, Scorer
from api.model.timed_registry import TimedRegistry
from scoring.errors import FeatureStoreError, ServingError
from scoring.features.feature_store import freeze_definitions, open_feature_store, read_definitions
from scoring.features.model_features import ModelFeatures
from scoring.models.admission import GOLDEN_ROWS, ValidationReport, verify_loaded
from scoring.models.loading_rules import LoadingRules
from scoring.models.model import Model, load_model
from scoring.models.model_files import ModelFiles, fetch_model, version_folder
from scoring.models.registry import ModelVersion, Registry
from scoring.models.trial_load import validate_in_trial
from scoring.online.lookup import fastest_lookup, read_online_vectors
from scoring.predict import Policy
from scoring.serving import ServingModel, link_version, resolve_version
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore

log = structlog.get_logger(__name__)

ValidateFiles = Callable[[ModelFiles, pa.Table | None], ValidationReport]

REMEMBERED = 16


class Target(msgspec.Struct, frozen=True):
    """What should serve: the version that the alias names, on the feature definitions as they are."""

    version: ModelVersion
    definitions: str
    """Hash of the feature definitions."""


class Loader(Protocol):
    """Where scorers come from. Called from one thread at a time."""

    def poll(self) -> Target:
        """What should serve now.

        Raises:
            RegistryError, FeatureStoreError: it can't be told.
        """

    def load(self, target: Target, current: Scorer | None) -> Scorer:
        """A scorer for `target`, beside `current`, which serves on.

        Raises:
            RegistryError: its files can't be fetched.
            ModelRefused, FeatureStoreError: it can't serve; the text says why.
            NoRoom: this machine has none for its files.
        """


class RegistryLoader:
    """A `Loader` that follows the alias in a model registry and the definitions in a Feast registry."""

    def __init__(
        self, settings: Settings, registry: Registry, validate_files: ValidateFiles = validate_in_trial
    ) -> None:
        """Remember where to look; nothing is opened before the first look.

        Args:
            settings: all of them.
            registry: where versions and their files come from.
            validate_files: how a version's files are admitted.
        """
        self._settings = settings
        self._registry = TimedRegistry(registry, settings.load_timeout_s)
        self._policy = Policy.from_settings(settings)
        self._watched: FeatureStore | None = None
        self._validate_files = validate_files
        self._proven: dict[str, ValidationReport] = {}

    def poll(self) -> Target:
        """See `Loader.poll`."""
        version = resolve_version(self._registry, self._settings)
        store = self._open()
        try:
            store.refresh_registry()
            definitions = read_definitions(store).hash
        except Exception as error:  # every Feast registry raises its own kinds
            raise FeatureStoreError("reading its registry", error) from error
        return Target(version, definitions)

    def load(self, target: Target, current: Scorer | None) -> Scorer:
        """See `Loader.load`."""
        with version_folder() as folder:
            return self._load(target, current, folder)

    def _load(self, target: Target, current: Scorer | None, folder: Path) -> Scorer:
        store = freeze_definitions(self._open(), self._settings.deadline_s)
        # Only the definitions changed: the model that is loaded already is linked to them.
        if isinstance(current, OnlineScorer) and current.version == target.version:
            features = link_version(store, target.version, current.model.signature, self._settings)
            serving = ServingModel(current.model, features)
            return OnlineScorer(serving, store, self._policy, independent_rows=current.independent_rows)
        files = fetch_model(self._registry, target.version, folder, LoadingRules.from_settings(self._settings))
        features = link_version(store, target.version, files.signature, self._settings)
        proof = self._prove(files, lambda: _known_rows(store, features, current))
        model = load_model(files, proof.as_array)
        verify_loaded(model, proof)
        _tell(model, proof)
        independent = proof.same_in_any_batch and proof.source != "made_up"
        return OnlineScorer(ServingModel(model, features), store, self._policy, independent_rows=independent)

    def _prove(self, files: ModelFiles, known_rows: Callable[[], pa.Table | None]) -> ValidationReport:
        # A rollback goes to files that were proven already, and need not wait for another trial.
        digest = files.digest()
        if digest not in self._proven:
            proof = self._validate_files(files, known_rows())
            if len(self._proven) == REMEMBERED:
                del self._proven[next(iter(self._proven))]
            self._proven[digest] = proof
        return self._proven[digest]

    def _open(self) -> "FeatureStore":
        if self._watched is None:
            self._watched = open_feature_store(self._settings, online_only=True)
        return self._watched


def _known_rows(store: "FeatureStore", features: ModelFeatures, current: Scorer | None) -> pa.Table | None:
    """Complete feature vectors of entities that were lately asked for: no online store lists those that it has."""
    if not isinstance(current, OnlineScorer) or current.lately_scored is None:
        return None
    rows = {column: values[:GOLDEN_ROWS] for column, values in current.lately_scored.items()}
    try:
        online = read_online_vectors(fastest_lookup(store, features), features, rows, datetime.now(UTC))
    except ServingError:  # other keys, or a store that does not answer now
        return None
    return online.vectors.filter(pc.is_null(online.reasons))


def _tell(model: Model, proof: ValidationReport) -> None:
    facts = {"model": str(model.version), "golden_rows": proof.source, "rows": proof.rows.num_rows}
    if proof.source == "made_up":
        log.warning("model_not_proven", hint="Log it with an input_example; see docs/security.md.", **facts)
    elif not proof.same_in_any_batch:
        log.warning("predictions_depend_on_the_batch", **facts)
    else:
        log.info("model_proven", as_array=proof.as_array, **facts)
