"""The webhook of an MLflow registry: once an alias has moved, the API polls it at once.

MLflow's signatures follow Standard Webhooks (mlflow/webhooks/delivery.py, 3.17): HMAC-SHA256 over `id.timestamp.body`.
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
# MLflow repeats a delivery after some seconds with the first attempt's timestamp. Clocks differ by less.
MAX_AGE_S = 300.0
MAX_DIGITS = 20


class Event(msgspec.Struct):
    """A change in the registry: the members of a delivery that are used here."""

    entity: str = ""
    action: str = ""
    data: dict[str, Any] = {}


class Deliveries:
    """Accepts deliveries that are signed with the webhook's secret, recent, and not repeated."""

    def __init__(self, secret: Secret, clock: Callable[[], float] = time.time) -> None:
        """Accept deliveries with this secret; `clock` returns seconds since 1970."""
        self._key = secret.reveal().encode()
        self._clock = clock
        self._seen: dict[str, float] = {}

    def is_new(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Return whether this delivery is a first attempt. A repeated one is also signed, and needs a response.

        Raises:
            NotSigned: the signature is wrong, or the timestamp is not recent. The error does not say which.
        """
        delivery, timestamp = headers.get(DELIVERY, ""), headers.get(TIMESTAMP, "")
        signed = b".".join((delivery.encode(), timestamp.encode(), body))
        expected = b"v1," + base64.b64encode(hmac.digest(self._key, signed, hashlib.sha256))
        # A sender that changes its secret may sign with both, separated by spaces.
        matches = [hmac.compare_digest(each, expected) for each in headers.get(SIGNATURE, "").encode().split(b" ")]
        if not any(matches) or not (timestamp.isdecimal() and len(timestamp) <= MAX_DIGITS):
            raise NotSigned
        now = self._clock()
        if abs(now - int(timestamp)) > MAX_AGE_S:
            raise NotSigned
        self._seen = {each: until for each, until in self._seen.items() if until >= now}
        new = delivery not in self._seen
        self._seen[delivery] = int(timestamp) + MAX_AGE_S
        return new


def mlflow_webhook(secret: Secret, settings: Settings, *wake: Callable[[], None]) -> HTTPRouteHandler:
    """Make the route for deliveries, which calls each `wake` for those about the registered model of the settings."""
    deliveries, bodies = Deliveries(secret), BodyReader(settings.body_timeout_s)

    @post(PATH, status_code=204)
    async def webhook(request: Request[Any, Any, Any]) -> None:
        """Poll the alias now."""
        body = await bodies.read(request.scope, headers_of(request.scope), request.receive, settings.max_body_bytes)
        if not deliveries.is_new(request.headers, body):
            return
        try:
            event = msgspec.json.decode(body, type=Event)
        except msgspec.MsgspecError:
            event = Event()  # signed, but in a format of a later MLflow: an additional poll is harmless
        if event.data.get("name", settings.model_name) == settings.model_name:
            log.info("registry_event", entity=event.entity, action=event.action)
            for each in wake:
                each()

    return webhook
