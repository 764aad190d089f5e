"""An ordinary HTTP client of the API."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

TIMEOUT_S = 5.0
# Errors of reading /ready if this API does not respond.
NO_STATE = (OSError, http.client.HTTPException, ValueError, LookupError, TypeError)


class Api:
    """The ranking API on a local port."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        """Return whether /ready responds with 200."""
        try:
            return bool(self.state()["ready"])
        except NO_STATE:
            return False

    def state(self) -> dict[str, Any]:
        """Return the members of the response of /ready, even if it is a problem.

        Raises:
            NO_STATE: this API does not listen on the port.
        """
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=TIMEOUT_S) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))

    def rank(self, drivers: Sequence[int]) -> tuple[str, str]:
        """Request the best of these drivers. Return the bodies of request and response, as JSON strings."""
        body = json.dumps({"request_id": "uuid-1", "driver_ids": list(drivers)})
        request = urllib.request.Request(f"{self.url}/inference", body.encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return body, response.read().decode()
        except urllib.error.HTTPError as error:
            return body, error.read().decode()

    def version(self) -> int | None:
        """Return the serving model version, or None if there is none."""
        try:
            model = self.state()["model"]
        except NO_STATE:
            return None
        return int(model["version"]) if model else None
