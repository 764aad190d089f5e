import time
from collections.abc import Iterator

import pytest

from scoring.batch.engine import LocalEngine
from scoring.files.location import Location
from tests.integration.scoring.spark.orders import World
from tests.support.java import java_home
from tests.support.servers import S3Server


@pytest.fixture(scope="package")
def surroundings(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[None]:
    """Java, a time zone far from UTC, and an S3 of the tests' own.

    All tests have the same, because the first one starts a Java process, which stays and hands its environment on.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAVA_HOME", str(java_home(tmp_path_factory.mktemp("java"))))
        environment.setenv("TZ", "America/New_York")
        time.tzset()
        for name, value in s3_server.environment.items():
            environment.setenv(name, value)
        yield
    time.tzset()


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="package")
def local(world: World) -> Location:
    """A folder with the local engine's result."""
    folder = Location(world.folder / "local")
    world.run(LocalEngine(), folder)
    return folder
