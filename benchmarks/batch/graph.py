"""The whole path of a batch request, through Dagster and as a sequence of its parts."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from benchmarks.batch.task import OUTPUT
from benchmarks.batch.world import FEW, open_batch_world, request_of
from benchmarks.paths import ROOT
from scoring.files.location import Location

if TYPE_CHECKING:
    from scoring.batch.callbacks import InspectInput, InspectOutput
    from scoring.features.model_features import ModelFeatures

    # Arguments: the model's features, and the locations of input and output.
    Inspections = Callable[[ModelFeatures, Location, Location], tuple[InspectInput, InspectOutput]]


class Graph:
    """Base class: a folder with the requests, and one for artifacts."""

    name = "graph"

    def __init__(self, rows: int) -> None:
        self.world = open_batch_world()
        self.rows = rows
        self.folder = OUTPUT / self.name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.requests, self.artifacts = self.folder / "requests", self.folder / "artifacts"
        self.requests.mkdir(parents=True)

    def prepare(self) -> None:
        """Score few rows."""
        for key, rows in (("few", FEW), ("all", self.rows)):
            (self.requests / f"{key}.parquet").hardlink_to(request_of(self.world, rows))
        self.score("few")

    def reset(self) -> None:
        """Do nothing: each run replaces the output."""

    def run(self) -> None:
        """Score all rows."""
        self.score("all")

    def score(self, key: str) -> None:
        """Score one of the requests."""
        raise NotImplementedError

    def outcome(self) -> dict[str, object]:
        """Return the number of rows written."""
        return {"rows": pq.read_metadata(self.artifacts / "all" / "batch_output.parquet").num_rows}


class ThroughDagster(Graph):
    """The job `score_batch` from start to end, as in a run after its imports.

    The Dagster instance uses serving_assets/dagster.yaml.
    """

    name = "graph-dagster"

    def prepare(self) -> None:
        import dagster as dg

        from serving_assets.definitions import definitions
        from serving_assets.resources import Serving

        environment = self.world.environment | {
            "SERVING_BATCH_REQUESTS": str(self.requests),
            "SERVING_ARTIFACTS": str(self.artifacts),
        }
        home = self.folder / "home"
        home.mkdir()
        shutil.copy(ROOT / "serving_assets" / "dagster.yaml", home)
        self.instance = dg.DagsterInstance.from_config(str(home))
        self.instance.add_dynamic_partitions("batch_requests", ["few", "all"])
        self.job = dg.Definitions(
            assets=definitions.assets,
            jobs=definitions.jobs,
            executor=definitions.executor,
            resources={"serving": Serving(environment)},
        ).resolve_job_def("score_batch")
        super().prepare()

    def score(self, key: str) -> None:
        self.job.execute_in_process(instance=self.instance, partition_key=key)


class Parts(Graph):
    """The functions that the assets call, in sequence: resolve, load, join, score. Without their checks."""

    name = "graph-parts"

    def score(self, key: str) -> None:
        from scoring.batch.callbacks import accept

        self.score_with(key, lambda *_: (accept, accept))

    def score_with(self, key: str, inspections: "Inspections") -> None:
        """Score one of the requests and inspect input and output."""
        from scoring.batch.engine import LocalEngine
        from scoring.batch.manifest import Origin
        from scoring.batch.request import copied_request
        from scoring.features.feature_store import read_definitions
        from scoring.models.registry import MlflowRegistry
        from scoring.predict import Policy
        from scoring.serving import load_serving_model, resolve_version

        settings = self.world.settings
        registry, store = MlflowRegistry.from_settings(settings), self.world.store()
        version = resolve_version(registry, settings)
        serving = load_serving_model(registry, store, version, settings)
        folder = Location(self.artifacts) / key
        joined, scored = folder / "batch_input.parquet", folder / "batch_output.parquet"
        request = Location(Path(self.requests) / f"{key}.parquet")
        of_input, of_output = inspections(serving.features, joined, scored)
        engine = LocalEngine()
        with copied_request(request) as copy:
            origin = Origin(copy.content, str(version), serving.features.service, read_definitions(store).hash)
            engine.write_input(copy, origin, store, serving.features, folder, of_input)
        engine.write_output(folder, serving, Policy.from_settings(settings), of_output)


class CheckedParts(Parts):
    """The parts with the assets' checks and metadata: nulls, freshness, drift, a plot."""

    name = "graph-checked"

    def score(self, key: str) -> None:
        from scoring.batch.quality import source_ages
        from serving_assets.assets.inspection import (
            InputInspection,
            OutputInspection,
            earlier_predictions,
            fresh_finding,
        )

        settings = self.world.settings
        with ThreadPoolExecutor(1, "plot") as drawing:

            def inspections(
                features: "ModelFeatures", joined: Location, scored: Location
            ) -> "tuple[InspectInput, InspectOutput]":
                ages = source_ages(self.world.store(), features)
                fresh = fresh_finding(ages, settings.max_source_age_s, datetime.now(UTC))
                earlier = earlier_predictions([scored.parent])
                return (
                    InputInspection(joined, features, settings, fresh),
                    OutputInspection(scored, features, settings, earlier, drawing),
                )

            self.score_with(key, inspections)


GRAPHS = (ThroughDagster, CheckedParts, Parts)
