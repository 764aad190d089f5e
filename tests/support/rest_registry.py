"""A server that answers as the REST interface of the MLflow registry does."""

import http.server
import json
import threading

from scoring.models.registry import ModelVersion


class Client:
    """A `Registry` that counts how often it is asked, and may know that there is no such model."""

    def __init__(self, error=None):
        self.asked = 0
        self.error = error

    def resolve(self, name, alias):
        self.asked += 1
        if self.error is not None:
            raise self.error
        return ModelVersion(name, 3, created_ms=1_600_000_000_000)


class Server:
    """Answers every request with one status and body, and remembers path and headers."""

    def __init__(self):
        said = {"version": "7", "creation_timestamp": 1_700_000_000_000}
        self.status, self.body = 200, {"model_version": said}
        self.paths, self.headers = [], {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.paths.append(self.path)
                outer.headers = dict(self.headers)
                body = outer.body if isinstance(outer.body, bytes) else json.dumps(outer.body).encode()
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
