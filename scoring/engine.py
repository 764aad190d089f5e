"""Which engine joins and scores batch requests: this process, or Spark. Chosen here and nowhere else."""

from typing import TYPE_CHECKING, Protocol

from scoring.batch.generations import INPUT, PARTED_INPUT, remove_file
from scoring.batch.manifest import OUTPUT_NAME, Manifest
from scoring.batch.pipeline import (
    InspectInput,
    InspectOutput,
    accept,
    read_batch_input_model,
    write_batch_input,
    write_batch_output,
)
from scoring.features.model_features import ModelFeatures
from scoring.files.location import Location
from scoring.files.transfer import Content
from scoring.predict import Policy
from scoring.serving import ServingModel
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore


class Engine(Protocol):
    """Joins and scores batch requests. Both engines write the same columns, values and order of rows.

    What each method reads and writes lies in the request's own folder of artifacts.
    """

    def input_place(self, folder: Location) -> Location:
        """The file whose replacement publishes a joined request."""

    def output_place(self, folder: Location) -> Location:
        """The file whose replacement publishes a scored request."""

    def write_input(
        self,
        request: Location,
        store: "FeatureStore",
        model: str,
        features: ModelFeatures,
        folder: Location,
        inspect: InspectInput = accept,
    ) -> Content:
        """`scoring.batch.pipeline.write_batch_input` into the request's folder; raises what it raises."""

    def read_input_model(self, folder: Location) -> str:
        """`scoring.batch.pipeline.read_batch_input_model` of what `write_input` wrote there; raises what it raises."""

    def write_output(
        self, folder: Location, serving: ServingModel, policy: Policy, inspect: InspectOutput = accept
    ) -> Manifest:
        """`scoring.batch.pipeline.write_batch_output` of what `write_input` wrote there; raises what it raises."""


class LocalEngine:
    """One process, streams of record batches, one file each for input and output."""

    def input_place(self, folder: Location) -> Location:
        """batch_input.parquet."""
        return folder / INPUT

    def output_place(self, folder: Location) -> Location:
        """batch_output.parquet."""
        return folder / OUTPUT_NAME

    def write_input(
        self,
        request: Location,
        store: "FeatureStore",
        model: str,
        features: ModelFeatures,
        folder: Location,
        inspect: InspectInput = accept,
    ) -> Content:
        """See `Engine`."""
        written = write_batch_input(request, store, model, features, folder / INPUT, inspect)
        remove_file(folder / PARTED_INPUT)  # of the other engine, which would find it older than this one
        return written

    def read_input_model(self, folder: Location) -> str:
        """See `Engine`."""
        return read_batch_input_model(folder / INPUT)

    def write_output(
        self, folder: Location, serving: ServingModel, policy: Policy, inspect: InspectOutput = accept
    ) -> Manifest:
        """See `Engine`."""
        return write_batch_output(
            folder / INPUT, serving.model, serving.features, policy, folder / OUTPUT_NAME, inspect
        )


def choose_engine(settings: Settings) -> Engine:
    """The engine that the settings name; starts nothing yet.

    Raises:
        SettingsError: it is Spark, and that is not installed.
    """
    if settings.batch_engine == "local":
        return LocalEngine()
    from scoring.spark.engine import SparkEngine

    return SparkEngine.from_settings(settings)
