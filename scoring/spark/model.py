"""Sends a model version to Spark's executors, where each worker process loads it once."""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from scoring.errors import EngineError
from scoring.files.atomic import scratch_folder
from scoring.models.loading_rules import LoadingRules
from scoring.models.model import Model, load_model
from scoring.models.model_files import read_model_files
from scoring.models.outputs import Outputs
from scoring.models.registry import ModelVersion

if TYPE_CHECKING:
    from pyspark import Broadcast, SparkContext

    from scoring.serving import ServingModel

_loaded: dict[str, Model] = {}
"""Digest of an archive → this process's model; only the latest one."""


class SentModel(msgspec.Struct, frozen=True):
    """A model version as it was admitted on the driver."""

    archive: "Broadcast[bytes]"
    """The version's files."""
    digest: str
    version: ModelVersion
    rules: LoadingRules
    as_array: bool
    outputs: Outputs

    def load(self) -> Model:
        """Return the model of this process. Its files are trusted by the same rules as on the driver.

        Raises:
            ModelRefused: see `load_model`.
        """
        if self.digest not in _loaded:
            _loaded.clear()
            with scratch_folder() as scratch:
                archive = scratch / "model.tar"
                archive.write_bytes(self.archive.value)
                shutil.unpack_archive(archive, scratch / "model", filter="data")
                files = read_model_files(self.version, scratch / "model", self.rules)
                _loaded[self.digest] = load_model(files, self.as_array, self.outputs)
        return _loaded[self.digest]


def send_model(context: "SparkContext", serving: "ServingModel") -> SentModel:
    """Send a version to the executors. The caller destroys the archive when no task needs it anymore.

    Raises:
        EngineError: the version was loaded without keeping its files.
    """
    files, model = serving.files, serving.model
    if files is None:
        raise EngineError(f"The files of model version {model.version} were not kept for Spark's executors.")
    with scratch_folder() as scratch:
        archive = Path(shutil.make_archive(str(scratch / "model"), "tar", files.folder)).read_bytes()
    digest = hashlib.sha256(archive + msgspec.json.encode(files.version)).hexdigest()
    sent = context.broadcast(archive)
    return SentModel(sent, digest, files.version, files.rules, model.as_array, model.outputs)
