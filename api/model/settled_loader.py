"""Prevents long pauses of the garbage collector during requests."""

import contextlib
import gc

from api.model.loading import Loader, Target
from api.model.scorer import Scorer
from scoring.imports import collector_paused

# Number of new objects after which the collector searches the youngest generation for cycles. Python's 700 are fewer
# than a lookup of 800 entities makes, and the search took 5 % of the processor time of requests with 100 ids (3.11).
COLLECT_AFTER = 20_000


class SettledLoader:
    """A `Loader` after whose first load the collector ignores all objects that exist by then.

    Feast, MLflow and scikit-learn leave 440,000 objects. Searching them stopped all requests for 300 ms, a whole
    deadline, again and again. It affects all objects of the process, so use it only in a process of its own.
    """

    def __init__(self, loader: Loader) -> None:
        """Wrap the loader that does the work."""
        self._loader = loader
        self._settled = False

    def poll(self) -> Target | None:
        """See `Loader.poll`."""
        with self._unless_settled():
            return self._loader.poll()

    def load(self, target: Target, current: Scorer | None) -> Scorer:
        """See `Loader.load`."""
        with self._unless_settled():
            scorer = self._loader.load(target, current)
        if not self._settled:
            gc.collect()
            gc.freeze()
            gc.set_threshold(COLLECT_AFTER, 10, 10)
            self._settled = True
        return scorer

    def _unless_settled(self) -> contextlib.AbstractContextManager[None]:
        # The first poll and the first load import libraries.
        return contextlib.nullcontext() if self._settled else collector_paused()
