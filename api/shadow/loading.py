"""Which challenger should score, and how it is loaded: like any version, but its trial process goes on to predict."""

from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from api.model.loading import RegistryLoader, Target, known_rows
from api.model.scorer import Scorer
from api.shadow.process import ChallengerProcess
from scoring.errors import AliasNotSet, FeaturesRejected
from scoring.features.feature_store import freeze_definitions
from scoring.features.model_features import ModelFeatures
from scoring.models.admission import ValidationReport
from scoring.models.loading_rules import LoadingRules
from scoring.models.model_files import fetch_model, version_folder
from scoring.models.registry import ModelVersion
from scoring.models.trial_load import validate_in_trial
from scoring.monitoring.drift import Baseline
from scoring.monitoring.prediction_log import CHALLENGER, feast_log_schema
from scoring.online.lookup import OnlineVectors, fastest_lookup, read_online_vectors, vectors_of
from scoring.online.reading import EntityRows, Sent, StoreRead
from scoring.online.shared_lookup import SharedLookup
from scoring.predict import Policy, Scores
from scoring.serving import check_output_names

if TYPE_CHECKING:
    from feast import FeatureStore


class ChallengerLoader(RegistryLoader):
    """A `Loader` of the version that the alias `challenger` names, unless the followed alias names it, too."""

    def poll(self) -> Target | None:
        """See `Loader.poll`."""
        try:
            version = self._registry.resolve(self._settings.model_name, CHALLENGER)
        except AliasNotSet:
            return None
        champion = self._registry.resolve(self._settings.model_name, self._settings.model_alias)
        return None if version == champion else Target(version, self._definitions())

    def load(self, target: Target, current: Scorer | None) -> "ChallengerScorer":  # noqa: ARG002 - it ends on its own
        """See `Loader.load`."""
        settings, version = self._settings, target.version
        store = freeze_definitions(self._open(), settings.deadline_s)
        process = ChallengerProcess(str(version), self._policy, settings.bulk_deadline_s)
        try:
            with version_folder() as folder:
                files = fetch_model(self._registry, version, folder, LoadingRules.from_settings(settings))
                features = self._link(store, version, files.signature)
                report = validate_in_trial(files, known_rows(store, features, None), process.trial)
            check_output_names(version, features, report.outputs)
            return ChallengerScorer(version, features, report, process, store, self._policy)
        except BaseException:
            process.close()
            raise


class ChallengerScorer:
    """A `Scorer` whose model is in a process of its own."""

    input_example: pa.Table | None = None
    empty_views: tuple[str, ...] = ()
    baseline: Baseline | None = None

    def __init__(
        self,
        version: ModelVersion,
        features: ModelFeatures,
        report: ValidationReport,
        process: ChallengerProcess,
        store: "FeatureStore",
        policy: Policy,
    ) -> None:
        """Prepare the lookup."""
        self.version, self.features, self.outputs = version, features, report.outputs
        self.proven = report.source != "made_up"
        on_demand = any(feature.on_demand for feature in features.features)
        self.mergeable = report.same_in_any_batch and self.proven and not on_demand and policy.kind != "reject"
        self._lookup = fastest_lookup(store, features)
        self._process, self._store, self._rejects = process, store, policy.kind == "reject"

    def share(self, other: ModelFeatures, columns: list[str]) -> SharedLookup:
        """Return a lookup that reads only what is not read for another version: see `SharedLookup`."""
        return SharedLookup(self._store, self.features, other, columns)

    def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
        """See `Scorer.look_up`."""
        return read_online_vectors(self._lookup, self.features, entity_rows, now)

    def send(self, entity_rows: EntityRows) -> Sent | None:
        """Return None: its process may take long."""

    def vectors(self, entity_rows: EntityRows, read: StoreRead, now: datetime) -> OnlineVectors:
        """See `Scorer.vectors`."""
        return vectors_of(self._lookup, self.features, read, entity_rows, now.timestamp())

    def score(self, entity_rows: EntityRows, online: OnlineVectors) -> Scores:  # noqa: ARG002 - rows have no names
        """See `Scorer.score`."""
        incomplete = len(online.reasons) - online.reasons.null_count
        if self._rejects and incomplete:
            raise FeaturesRejected([], incomplete)
        return self._process.score(online.vectors, online.reasons, self.outputs.schema)

    def stored_keys(self) -> EntityRows | None:
        """Return None: requests are described by the champion."""

    def log_schema(self) -> pa.Schema:
        """See `Scorer.log_schema`."""
        return feast_log_schema(self._store, self.features)

    def check_store(self) -> None:
        """See `Scorer.check_store`."""

    def close(self) -> None:
        """See `Scorer.close`."""
        self._process.close()
