"""Dagster's daemon step by step: it evaluates the sensors on a real instance with a fake registry."""

import os
import time
import uuid
from pathlib import Path

import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData
from dagster._core.instance.ref import InstanceRef

from scoring.errors import AliasNotSet, RegistryUnreachable
from scoring.files.location import Location
from scoring.models.registry import ModelVersion
from scoring.settings import Settings
from serving_assets.assets.model_version import origin_metadata
from serving_assets.definitions import definitions
from serving_assets.records.history import partitions_of
from serving_assets.records.observations import refused_event, seen_event
from serving_assets.records.requests import list_requests, read_hash

MODEL = "ranker"


class FakeRegistry:
    """A registry whose alias is an attribute."""

    def __init__(self) -> None:
        self.champion: int | None = None
        self.created_ms = 1_700_000_000_000
        self.up = True

    def resolve(self, name: str, alias: str) -> ModelVersion:
        if not self.up:
            raise RegistryUnreachable("http://registry", ConnectionError("refused"))
        if self.champion is None:
            raise AliasNotSet(name, alias)
        return ModelVersion(name, self.champion, created_ms=self.created_ms)


class FakeServing:
    """The members of `Serving` that the sensors use."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            model_name=MODEL, batch_requests=Location(folder), mlflow_tracking_uri="postgresql://registry"
        )
        self.registry = FakeRegistry()


class Daemon:
    """Handles the result of a tick as Dagster's daemon does, and simulates the runs."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.serving = FakeServing(folder)
        # In memory: SQLite files take twice the CPU time, most of it in Dagster's check of their revision.
        home.mkdir()
        self.instance = dg.DagsterInstance.ephemeral(str(home))
        self._ref = InstanceRef.from_dir(str(home))  # a tick in tests needs one, and opens no other instance
        self.repository = definitions.get_repository_def()
        self.cursors: dict[str, str | None] = {}
        self.runs: list[dg.DagsterRun] = []

    def write_request(self, key: str, age_s: float = 60, text: str = "driver_id,event_timestamp\n") -> None:
        file = self.folder / f"{key}.csv"
        file.write_text(text)
        os.utime(file, (time.time() - age_s,) * 2)

    def tick(self, name: str) -> str | None:
        """Evaluate a sensor once and start the runs that it requests. Return its skip reason."""
        context = dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self._ref,
            cursor=self.cursors.get(name),
            repository_def=self.repository,
            sensor_name=name,
            resources={"serving": self.serving},
        )
        data = definitions.resolve_sensor_def(name).evaluate_tick(context)
        self.cursors[name] = data.cursor
        for event in data.asset_events:
            self.instance.report_runless_asset_event(event)
        for partitions in data.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(partitions.partitions_def_name, partitions.partition_keys)
        keys = {run.tags["dagster/run_key"] for run in self.runs}
        for request in data.run_requests or []:
            if request.run_key not in keys:
                self.start(name, request)
        return data.skip_message

    def both(self) -> None:
        self.tick("new_model_version")
        self.tick("new_batch_request")

    def tick_after_failure(self, run: dg.DagsterRun) -> str | None:
        """Evaluate score_the_others for a failed run."""
        name = "score_the_others"
        failed = self.instance.get_run_by_id(run.run_id)
        event = dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_FAILURE.value, job_name=run.job_name)
        context = dg.build_run_status_sensor_context(
            sensor_name=name, dagster_event=event, dagster_instance=self.instance, dagster_run=failed
        ).for_run_failure()
        answer = definitions.resolve_sensor_def(name)(context)
        if isinstance(answer, dg.SkipReason):
            return answer.skip_message
        for request in answer.run_requests:
            self.start(name, request)
        return None

    def start(self, sensor: str, request: dg.RunRequest) -> None:
        """Start a run that the sensor has requested."""
        run = dg.DagsterRun(
            job_name="score_batch",
            run_id=str(uuid.uuid4()),
            run_config=request.run_config,
            tags={
                **request.tags,
                **({"dagster/partition": request.partition_key} if request.partition_key else {}),
                "dagster/run_key": request.run_key,
                "dagster/sensor_name": sensor,
            },
            status=dg.DagsterRunStatus.STARTED,
        )
        self.runs.append(self.instance.add_run(run))
        # Of the events that plan its assets, only those that the sensors read.
        self.plan(run, "batch_output")

    def plan(self, run: dg.DagsterRun, asset: str) -> None:
        """Record that the run is going to materialize an asset."""
        planned = [
            dg.DagsterEvent(
                event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value,
                job_name=run.job_name,
                event_specific_data=AssetMaterializationPlannedData(dg.AssetKey(asset), partition=key),
            )
            for key in self.partitions(run)
        ]
        # In one transaction: Dagster needs one for each, 1000 of which would take a minute.
        storage = self.instance.event_log_storage
        with storage.index_connection() as connection:
            connection.execute(storage.prepare_insert_event_batch([_entry(run, event) for event in planned]))

    def finish(self, run: dg.DagsterRun) -> None:
        """End the run with success: with the version that it pins, else with the version that the alias names now."""
        config = run.run_config.get("ops", {}).get("registered_model_version", {}).get("config", {})
        self.materialize(run, config.get("version") or self.serving.registry.champion)

    def materialize(self, run: dg.DagsterRun, version: int) -> None:
        self.read(run)
        made_with = ModelVersion(MODEL, version, created_ms=self.serving.registry.created_ms)
        metadata = origin_metadata(self.serving.settings, made_with, "ranking", "alias champion")
        for key in self.partitions(run):
            self.instance.report_runless_asset_event(
                dg.AssetMaterialization("batch_output", partition=key, metadata=metadata)
            )
        self.instance.handle_new_event(_ended(run, dg.DagsterEventType.RUN_SUCCESS))

    def read(self, run: dg.DagsterRun) -> None:
        """Record that the run reads its files."""
        keys = set(self.partitions(run))
        for file in list_requests(Location(self.folder)):
            if file.key in keys:
                self.instance.report_runless_asset_event(seen_event(file, read_hash(Location(self.folder), file)))

    def refuse(self, run: dg.DagsterRun, *keys: str) -> None:
        """End the run with failure, after it read its files and could not score some of them."""
        self.read(run)
        for key in keys:
            event = dg.DagsterEvent(
                event_type_value=dg.DagsterEventType.ASSET_OBSERVATION.value,
                job_name=run.job_name,
                event_specific_data=dg._core.events.AssetObservationData(refused_event(key, "bad")),
            )
            self.instance.handle_new_event(_entry(run, event))
        self.fail(run)

    def fail(self, run: dg.DagsterRun, ago_s: float = 0) -> None:
        self.instance.handle_new_event(_ended(run, dg.DagsterEventType.RUN_FAILURE, ago_s))

    def partitions(self, run: dg.DagsterRun) -> list[str]:
        return list(partitions_of(run.tags, list(self.instance.get_dynamic_partitions("batch_requests"))))

    def finish_all(self) -> None:
        for run in self.runs:
            if not self.instance.get_run_by_id(run.run_id).is_finished:
                self.finish(run)


def _ended(run: dg.DagsterRun, event_type: dg.DagsterEventType, ago_s: float = 0) -> dg.EventLogEntry:
    return _entry(run, dg.DagsterEvent(event_type_value=event_type.value, job_name=run.job_name), ago_s)


def _entry(run: dg.DagsterRun, event: dg.DagsterEvent, ago_s: float = 0) -> dg.EventLogEntry:
    return dg.EventLogEntry(
        error_info=None,
        level="info",
        user_message="",
        run_id=run.run_id,
        timestamp=time.time() - ago_s,
        job_name=run.job_name,
        dagster_event=event,
    )
