"""Ask the API as any client would."""

import json
import urllib.error
import urllib.request
from collections.abc import Sequence


class Api:
    """The ranking API at a port of this machine."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        """Whether /ready says so."""
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def rank(self, drivers: Sequence[int]) -> tuple[str, str]:
        """Ask for the best of these drivers; the request's body and the answer's, as JSON text."""
        body = json.dumps({"request_id": "uuid-1", "driver_ids": list(drivers)})
        request = urllib.request.Request(f"{self.url}/inference", body.encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return body, response.read().decode()
        except urllib.error.HTTPError as error:
            return body, error.read().decode()

    def version(self) -> int | None:
        """The model version that serves now, None while there is none."""
        try:
            with urllib.request.urlopen(f"{self.url}/version", timeout=5) as response:
                model = json.load(response).get("model")
        except OSError:
            return None
        return int(model["version"]) if model else None
