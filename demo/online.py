"""A client of the API, as any caller would write it."""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence


class Api:
    """The ranking API on a local port."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        """Return whether /ready responds with 200."""
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

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
            with urllib.request.urlopen(f"{self.url}/version", timeout=5) as response:
                model = json.load(response).get("model")
        except OSError:
            return None
        return int(model["version"]) if model else None
