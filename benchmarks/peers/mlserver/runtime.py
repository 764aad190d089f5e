"""The same work as a custom MLServer runtime, over the V2 inference protocol."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput
from ranker import Ranker


class DriverRanker(MLModel):
    """Input `driver_ids` INT64 (n,); outputs `prediction` INT64 and `score` FP64 (1,), empty if no driver is known."""

    async def load(self) -> bool:
        """Load the store and the model. MLServer calls this once."""
        self.ranker = Ranker()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Return the best of these drivers."""
        prediction, score = self.ranker.best(NumpyCodec.decode_input(payload.inputs[0]).tolist())
        found = [] if prediction is None else [prediction]
        outputs = [
            ResponseOutput(name="prediction", datatype="INT64", shape=[len(found)], data=found),
            ResponseOutput(name="score", datatype="FP64", shape=[len(found)], data=[score] if found else []),
        ]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
