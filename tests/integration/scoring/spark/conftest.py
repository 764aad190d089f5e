from pathlib import Path

import pytest

from scoring.batch.engine import LocalEngine
from scoring.files.location import Location
from tests.integration.scoring.spark.orders import World
from tests.support.java import java_home


@pytest.fixture(scope="package")
def java(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JAVA_HOME for Spark."""
    return java_home(tmp_path_factory.mktemp("java"))


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="package")
def local(world: World) -> Location:
    """A folder with the local engine's result."""
    folder = Location(world.folder / "local")
    world.run(LocalEngine(), folder)
    return folder
