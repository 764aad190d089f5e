"""The same work as an MLflow model in Python, for MLflow's own scoring server."""

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from ranker import Ranker


class DriverScores(PythonModel):
    """Input `driver_id` (n,); a list of n scores, None for a driver without features."""

    def load_context(self, context):  # noqa: ARG002 - as MLflow calls it
        """Load the store and the model. MLflow calls this once."""
        self.ranker = Ranker()

    def predict(self, context, model_input):  # noqa: ARG002 - as MLflow calls it
        """Return the score of each driver."""
        driver_ids = model_input["driver_id"].tolist()
        known, scores = self.ranker.scores(driver_ids)
        score = dict(zip(known, scores.tolist(), strict=True))
        return [score.get(each) for each in driver_ids]


set_model(DriverScores())
