"""The application: everything is built here from settings and, for tests, from parts passed in."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from litestar import Litestar
from litestar.di import Provide
from litestar.static_files import create_static_files_router

from api.loading import Loader, RegistryLoader
from api.model_slot import AliasFollower, ModelSlot
from api.problems import to_problem
from api.routes import STATIC, Description, Health, Scoring
from api.store_probe import StoreProbe
from api.workers import Workers
from scoring.registry import MlflowRegistry
from scoring.settings import Settings


def create_app(settings: Settings, loader: Loader | None = None) -> Litestar:
    """The API, without having opened or loaded anything: that begins with the application's life.

    Args:
        settings: all of them.
        loader: where the model that serves comes from; the MLflow and Feast registries of the settings by default.
    """
    if loader is None:
        loader = RegistryLoader(settings, MlflowRegistry.from_settings(settings))
    slot = ModelSlot()
    probe = StoreProbe()
    workers = Workers("request", settings.max_concurrent_requests, settings.max_waiting_requests)
    index = (STATIC / "index.html").read_bytes()

    @contextlib.asynccontextmanager
    async def life(_: Litestar) -> AsyncIterator[None]:
        follower = AliasFollower(settings, loader, slot, probe)
        for each in (workers, probe, follower):
            each.start()
        tasks = [
            asyncio.create_task(follower.run(), name="alias-follower"),
            asyncio.create_task(probe.run(lambda: slot.served.scorer if slot.served else None), name="store-probe"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for each in (workers, probe, follower):
                each.stop()

    parts = {"settings": settings, "slot": slot, "probe": probe, "workers": workers, "index": index}
    return Litestar(
        route_handlers=[
            Scoring,
            Health,
            Description,
            create_static_files_router(path="/static", directories=[STATIC], include_in_schema=False),
        ],
        dependencies={name: _provide(part) for name, part in parts.items()},
        exception_handlers={Exception: to_problem},
        lifespan=[life],
        openapi_config=None,
        logging_config=None,
        request_max_body_size=settings.max_body_bytes,
    )


def _provide(part: object) -> Provide:
    return Provide(lambda: part, use_cache=True, sync_to_thread=False)
