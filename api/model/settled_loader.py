"""Keeps the garbage collector's pauses out of requests."""

import contextlib
import gc

from api.model.loading import Loader, Target
from api.model.scorer import Scorer
from scoring.imports import collector_paused

# Objects that may come to be before the youngest are looked at, for cycles: a lookup of 800 entities makes more than
# Python's 700, and looking took a twentieth of the processor time of 100 ids a request (3.11).
COLLECT_AFTER = 20_000


class SettledLoader:
    """A `Loader` after whose first load the collector no longer looks at what is in memory by then.

    Feast, MLflow and scikit-learn leave 440,000 objects. Looking at all of them stopped every request for 300 ms, a
    whole deadline, again and again. Only for a process of its own: it concerns all objects of the process.
    """

    def __init__(self, loader: Loader) -> None:
        """Args: the loader that does the work."""
        self._loader = loader
        self._settled = False

    def poll(self) -> Target:
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
        # The first look and the first load import what they need.
        return contextlib.nullcontext() if self._settled else collector_paused()
