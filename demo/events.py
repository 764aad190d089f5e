"""Report events of the running demo: promotions, swaps, refused versions, scored requests and failed runs."""

import contextlib
import time
from collections.abc import Iterator

from demo import show
from demo.dagit import Dagit
from demo.environment import ALIAS, MODEL
from demo.online import Api
from demo.training import champion_version


class Events:
    """Polls the registry, the API and Dagit, and prints one line per change since its creation."""

    def __init__(self, tracking_uri: str, api: Api, dagit: Dagit) -> None:
        self._tracking_uri, self._api, self._dagit = tracking_uri, api, dagit
        self._champion = champion_version(tracking_uri)
        self._serving: str | None = None
        self._refused: str | None = None
        self._started_s = time.time()
        self._scored_ms = int(self._started_s * 1000)
        self._failed_runs = set[str]()

    def print_new(self) -> None:
        """Poll once. If a server fails, its events are reported by a later poll."""
        for poll in (self._promoted, self._served, self._scored, self._failed):
            with contextlib.suppress(Exception):  # the demo must stay up, even if a poll raises
                for topic, text in poll():
                    show.event(topic, text)

    def _promoted(self) -> Iterator[tuple[str, str]]:
        before, self._champion = self._champion, champion_version(self._tracking_uri)
        if self._champion is None and before is not None:
            yield "Model", f"alias {ALIAS} removed: the API continues to serve {MODEL}/{before}"
        elif self._champion != before:
            yield (
                "Model",
                f"{MODEL}/{self._champion} promoted: alias {ALIAS} moved"
                + (f" from {MODEL}/{before}" if before else ""),
            )

    def _served(self) -> Iterator[tuple[str, str]]:
        state = self._api.state()
        model, refused = state["model"], state["refused"]
        before, self._serving = self._serving, model and f"{model['name']}/{model['version']}"
        if before and self._serving and self._serving != before:
            yield "Online", f"the API swapped {before} for {self._serving}"
        known, self._refused = self._refused, refused and refused["model"]
        if refused and refused["model"] != known:
            yield "Online", f"the API refused {refused['model']}: {refused['reason']}"

    def _scored(self) -> Iterator[tuple[str, str]]:
        for each in self._dagit.scored_since(self._scored_ms):
            self._scored_ms = max(self._scored_ms, each.timestamp_ms + 1)
            counts = ", ".join([f"{each.scored} of {each.rows} rows", *each.reasons])
            yield "Batch", f"{each.request} scored with {each.version}: {counts}"
            if each.changes is not None:
                yield "", each.changes
            yield "", f"preview and plots: {show.request_page(self._dagit.url, each.request)}"

    def _failed(self) -> Iterator[tuple[str, str]]:
        for run_id in self._dagit.failed_since(self._started_s):
            if run_id not in self._failed_runs:
                reason = self._dagit.failure(run_id)
                self._failed_runs.add(run_id)
                yield "Batch", f"run {run_id[:8]} failed: {reason}"
