"""The interface of the two batch engines, the choice between this process and Spark, and scoring with either."""

from typing import TYPE_CHECKING, Protocol

from scoring.batch.callbacks import InspectInput, InspectOutput, ReportRows, accept
from scoring.batch.engine import LocalEngine
from scoring.batch.manifest import Manifest, Origin
from scoring.batch.request import RequestCopy
from scoring.features.feature_store import read_definitions
from scoring.features.model_features import ModelFeatures
from scoring.files.location import Location
from scoring.files.transfer import Content
from scoring.predict import Policy
from scoring.serving import ServingModel
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore


class Engine(Protocol):
    """Joins and scores batch requests. Both engines write the same columns and values, in the request's order.

    Each request has its own folder, in which `write_output` reads the files that `write_input` wrote.
    """

    input_name: str
    """The file in that folder whose replacement publishes the joined rows."""
    output_name: str
    """The file whose replacement publishes the scored rows."""

    def write_input(
        self,
        request: RequestCopy,
        origin: Origin,
        store: "FeatureStore",
        features: ModelFeatures,
        folder: Location,
        inspect: InspectInput = accept,
        progress: ReportRows = accept,
    ) -> Content:
        """Join a request with the model's features, and publish the result atomically.

        The result has the request's own columns, then the features in signature order, and the request's rows in order.

        Args:
            request: a copy of the request's file.
            origin: the origin to record in the metadata, above all the model version.
            store: the Feast store.
            features: the features that fill the model's inputs.
            folder: the request's folder.
            inspect: called with the finished result; raises to discard it.
            progress: called as rows are written, by the local engine only.

        Raises:
            BatchRequestError: see `read_batch_request`.
            FeatureStoreError: the offline store failed, or rows were lost or duplicated.
            EngineError: Spark failed.
            StorageError: the result can't be written. An older one is unchanged.
        """

    def read_input_model(self, folder: Location) -> str:
        """Return the `name/version` of the model that the joined rows in a folder are for.

        Raises:
            BatchRequestError: there are no joined rows, or they can't be read.
            StorageError: the folder can't be reached.
        """

    def write_output(
        self,
        folder: Location,
        serving: ServingModel,
        policy: Policy,
        inspect: InspectOutput = accept,
        progress: ReportRows = accept,
    ) -> Manifest:
        """Score the joined rows of a folder, and publish the result and manifest.json.

        The result has the input's columns, then the model's outputs, the reason, the model and the feature service. The
        same input, model version and policy give the same bytes.

        Raises:
            BatchRequestError: the input can't be read, is for another version or signature, or has a column with the
                name of one of the model's outputs.
            FeaturesRejected: the policy is `reject` and a row lacks a feature. The message gives its number in the
                input, counted from 1.
            PredictionFailed: the model failed.
            EngineError: Spark failed.
            StorageError: the input can't be fetched, or the result can't be written.

        After an error, an older result is unchanged, with one exception: the local engine replaces manifest.json right
        after the output, and if only that fails (the object store goes down between two uploads), the next run repairs
        the manifest.
        """


def score_request(
    engine: Engine,
    serving: ServingModel,
    request: RequestCopy,
    store: "FeatureStore",
    policy: Policy,
    folder: Location,
    progress: tuple[ReportRows, ReportRows] = (accept, accept),
) -> Manifest:
    """Join a request, and score it into a folder. `progress` is one function for each of the two.

    Raises as the engine's two methods.
    """
    features, model = serving.features, str(serving.model.version)
    origin = Origin(request.content, model, features.service, read_definitions(store).hash)
    engine.write_input(request, origin, store, features, folder, progress=progress[0])
    return engine.write_output(folder, serving, policy, progress=progress[1])


def choose_engine(settings: Settings) -> Engine:
    """Return the engine that the settings name. Spark starts lazily.

    Raises:
        SettingsError: the engine is Spark, which is not installed.
    """
    if settings.batch_engine == "local":
        return LocalEngine()
    from scoring.spark.engine import SparkEngine

    return SparkEngine.from_settings(settings)
