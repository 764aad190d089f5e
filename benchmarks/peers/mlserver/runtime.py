"""The same work as a custom runtime of MLServer, over the V2 inference protocol that it speaks."""

from course import Ranker
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class DriverRanker(MLModel):
    """Input `driver_ids` INT64 (n,); outputs `prediction` INT64 and `score` FP64 (1,), empty for unknown ones."""

    async def load(self) -> bool:
        """Called once by MLServer."""
        self.ranker = Ranker()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The best of these drivers."""
        prediction, score = self.ranker.best(NumpyCodec.decode_input(payload.inputs[0]).tolist())
        found = [] if prediction is None else [prediction]
        outputs = [
            ResponseOutput(name="prediction", datatype="INT64", shape=[len(found)], data=found),
            ResponseOutput(name="score", datatype="FP64", shape=[len(found)], data=[score] if found else []),
        ]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
