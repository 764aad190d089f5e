"""Loaders: which model version should serve now, and how it is loaded."""

import contextlib
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
from scoring.arrow.signature import Signature
from scoring.errors import FeatureStoreError, ServingError
from scoring.features.feature_store import freeze_definitions, open_feature_store, read_definitions
from scoring.features.model_features import ModelFeatures
from scoring.models.admission import GOLDEN_ROWS, ValidationReport, verify_loaded
from scoring.models.loading_rules import LoadingRules
from scoring.models.model import Model, load_model
from scoring.models.model_files import ModelFiles, fetch_model, version_folder
from scoring.models.registry import ModelVersion, Registry
from scoring.models.trial_load import validate_in_trial
from scoring.monitoring.baseline import content_in, read_baseline
from scoring.online.empty_views import empty_views_problem
from scoring.online.lookup import fastest_lookup, read_online_vectors
from scoring.online.reading import EntityRows
from scoring.online.stored_keys import stored_keys
from scoring.predict import Policy
from scoring.serving import ServingModel, check_online, check_output_names, link_version, resolve_version
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore

log = structlog.get_logger(__name__)

ValidateFiles = Callable[[ModelFiles, pa.Table | None], ValidationReport]

REMEMBERED = 16
# The share of a request's deadline that the search for rows on which the model raises may take: the requests that are
# scored together still get their answers in time.
SEARCH_SHARE = 1 / 3


class Target(msgspec.Struct, frozen=True):
    """What should serve: the version that the alias names, with the current feature definitions."""

    version: ModelVersion
    definitions: str
    """Hash of the feature definitions."""


class Loader(Protocol):
    """Creates scorers. Called from one thread at a time."""

    def poll(self) -> Target | None:
        """Return what should serve now; None if nothing should.

        Raises:
            RegistryError, FeatureStoreError: a registry does not answer, or does not know.
        """

    def load(self, target: Target, current: Scorer | None) -> Scorer:
        """Return a scorer for `target`; `current` keeps serving.

        Raises:
            RegistryError: the version's files can't be fetched.
            ModelRefused, FeatureStoreError: it can't serve.
            NoRoom: this machine does not have enough disk space for its files.
        """


class RegistryLoader:
    """A `Loader` that follows the alias in a model registry and the definitions in a Feast registry."""

    def __init__(
        self, settings: Settings, registry: Registry, validate_files: ValidateFiles = validate_in_trial
    ) -> None:
        """Open nothing yet.

        Args:
            settings: the settings of the application.
            registry: provides versions and their files.
            validate_files: validates a version's files.
        """
        self._settings = settings
        self._registry = TimedRegistry(registry, settings.load_timeout_s)
        self._policy = Policy.from_settings(settings)
        self._watched: FeatureStore | None = None
        self._validate_files = validate_files
        self._reports: dict[str, ValidationReport] = {}

    def poll(self) -> Target | None:
        """See `Loader.poll`."""
        return Target(resolve_version(self._registry, self._settings), self._definitions())

    def _definitions(self) -> str:
        """Return the hash of the current feature definitions. Raises FeatureStoreError."""
        store = self._open()
        try:
            store.refresh_registry()
            return read_definitions(store).hash
        except Exception as error:  # every Feast registry raises its own kinds
            raise FeatureStoreError("reading its registry", error) from error

    def load(self, target: Target, current: Scorer | None) -> Scorer:
        """See `Loader.load`."""
        with version_folder() as folder:
            return self._load(target, current, folder)

    def _load(self, target: Target, current: Scorer | None, folder: Path) -> Scorer:
        store = freeze_definitions(self._open(), self._settings.deadline_s)
        # Only the definitions changed: the loaded model is linked to them.
        if isinstance(current, OnlineScorer) and current.version == target.version:
            model, independent, proven = current.model, current.independent_rows, current.proven
            input_example, baseline = current.input_example, current.baseline
            features = self._link(store, target.version, model.signature)
        else:
            files = fetch_model(self._registry, target.version, folder, LoadingRules.from_settings(self._settings))
            features = self._link(store, target.version, files.signature)
            report = self._validate(files, lambda: known_rows(store, features, current))
            model = load_model(files, report.as_array, report.outputs)
            verify_loaded(model, report)
            _log_report(model, report)
            proven = report.source != "made_up"
            independent = report.same_in_any_batch and proven
            input_example = report.rows.slice(0, 1 if report.source == "input_example" else 0)
            baseline = read_baseline(target.version, content_in(files.folder), self._settings.prediction_log)
        check_output_names(target.version, features, model.outputs)
        scorer = OnlineScorer(
            ServingModel(model, features),
            store,
            self._policy,
            independent_rows=independent,
            proven=proven,
            search_s=self._settings.deadline_s * SEARCH_SHARE,
            input_example=input_example,
        )
        scorer.baseline = baseline
        if scorer.empty_views:
            log.warning("feature_views_empty", problem=empty_views_problem(scorer.empty_views, self._settings))
        return scorer

    def _link(self, store: "FeatureStore", version: ModelVersion, signature: Signature) -> ModelFeatures:
        """Return the version's features.

        Raises:
            ModelRefused: see `link_version`; or a feature view is never in the online store.
            FeatureStoreError: see `link_version`.
        """
        features = link_version(store, version, signature, self._settings)
        check_online(version, features)
        return features

    def _validate(self, files: ModelFiles, known_rows: Callable[[], pa.Table | None]) -> ValidationReport:
        # A rollback loads files that were validated before, and need not wait for another trial.
        digest = files.digest()
        if digest not in self._reports:
            report = self._validate_files(files, known_rows())
            if len(self._reports) == REMEMBERED:
                del self._reports[next(iter(self._reports))]
            self._reports[digest] = report
        return self._reports[digest]

    def _open(self) -> "FeatureStore":
        if self._watched is None:
            self._watched = open_feature_store(self._settings, online_only=True)
        return self._watched


def known_rows(store: "FeatureStore", features: ModelFeatures, current: Scorer | None) -> pa.Table | None:
    """Return complete feature vectors of recently requested entities, or else of stored ones; None without any."""
    lookup = fastest_lookup(store, features)
    candidates: list[EntityRows | None] = []
    if isinstance(current, OnlineScorer) and current.lately_scored is not None:
        candidates.append({name: values[:GOLDEN_ROWS] for name, values in current.lately_scored.items()})
    if not features.request_inputs:  # their values are known only from requests
        candidates.append(stored_keys(store, lookup, features))
    for rows in candidates:
        with contextlib.suppress(ServingError):  # other keys, or a store that does not answer now
            if rows is not None:
                online = read_online_vectors(lookup, features, rows, datetime.now(UTC))
                if online.reasons.null_count:
                    return online.vectors.filter(pc.is_null(online.reasons))
    return None


def _log_report(model: Model, report: ValidationReport) -> None:
    facts = {"model": str(model.version), "golden_rows": report.source, "rows": report.rows.num_rows}
    if report.source == "made_up":
        log.warning("model_not_proven", hint="Log it with an input_example; see docs/security.md.", **facts)
    elif not report.same_in_any_batch:
        log.warning("predictions_depend_on_the_batch", **facts)
    else:
        log.info("model_proven", as_array=report.as_array, **facts)
