"""What an MLflow registry tells on its own: that an alias moved. It saves the wait for the next look, no more.

MLflow signs like Standard Webhooks (mlflow/webhooks/delivery.py, 3.17): HMAC-SHA256 over `id.timestamp.body`.
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler

from api.errors import NotSigned
from api.http.messages import BodyReader, headers_of
from scoring.secret import Secret
from scoring.settings import Settings

log = structlog.get_logger(__name__)

PATH = "/webhooks/mlflow"
SIGNATURE, TIMESTAMP, DELIVERY = "X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"
# MLflow sends a delivery's attempts, some seconds apart, with the time of the first; clocks differ by less.
FRESH_S = 300.0
MOST_DIGITS = 20


class Event(msgspec.Struct):
    """What happened in the registry, as far as it matters here."""

    entity: str = ""
    action: str = ""
    data: dict[str, Any] = {}


class Deliveries:
    """Accepts deliveries that are signed with our secret, fresh, and not repeated."""

    def __init__(self, secret: Secret, clock: Callable[[], float] = time.time) -> None:
        """Args: the webhook's secret, and what gives seconds since 1970."""
        self._key = secret.reveal().encode()
        self._clock = clock
        self._seen: dict[str, float] = {}

    def is_new(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Whether this delivery came for the first time. A repeated one is well signed, too, and needs an answer.

        Raises:
            NotSigned: without the right signature, or not fresh. Which of the two is not told.
        """
        delivery, timestamp = headers.get(DELIVERY, ""), headers.get(TIMESTAMP, "")
        signed = b".".join((delivery.encode(), timestamp.encode(), body))
        expected = b"v1," + base64.b64encode(hmac.digest(self._key, signed, hashlib.sha256))
        # A sender that changes its secret may sign with both, separated by spaces.
        fits = [hmac.compare_digest(each, expected) for each in headers.get(SIGNATURE, "").encode().split(b" ")]
        if not any(fits) or not (timestamp.isdecimal() and len(timestamp) <= MOST_DIGITS):
            raise NotSigned
        now = self._clock()
        if abs(now - int(timestamp)) > FRESH_S:
            raise NotSigned
        self._seen = {each: until for each, until in self._seen.items() if until >= now}
        new = delivery not in self._seen
        self._seen[delivery] = int(timestamp) + FRESH_S
        return new


def mlflow_webhook(secret: Secret, settings: Settings, wake: Callable[[], None]) -> HTTPRouteHandler:
    """The route that takes deliveries and calls `wake` for those about the registered model of the settings."""
    deliveries, bodies = Deliveries(secret), BodyReader(settings.max_body_bytes, settings.body_timeout_s)

    @post(PATH, status_code=204)
    async def webhook(request: Request[Any, Any, Any]) -> None:
        """Look at the alias now."""
        body = await bodies.read(headers_of(request.scope), request.receive)
        if not deliveries.is_new(request.headers, body):
            return
        try:
            event = msgspec.json.decode(body, type=Event)
        except msgspec.MsgspecError:
            event = Event()  # signed, but in a form of a later MLflow: looking once more does no harm
        if event.data.get("name", settings.model_name) == settings.model_name:
            log.info("registry_event", entity=event.entity, action=event.action)
            wake()

    return webhook
