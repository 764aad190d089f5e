"""A registry whose versions are folders, and modifications of their files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from scoring.models.loading_rules import LoadingRules
from scoring.models.registry import ModelVersion
from scoring.settings import Settings

VERSION = ModelVersion("m", 1)


def loading_rules(**settings: Any) -> LoadingRules:
    """Return the loading rules for these settings; others have their defaults."""
    return LoadingRules.from_settings(Settings(model_name="m", **settings))


class FolderRegistry:
    """A registry with one version, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resolve(self, name: str, alias: str) -> ModelVersion:
        return VERSION

    def version(self, name: str, version: int) -> ModelVersion:
        return VERSION

    def size(self, model: ModelVersion) -> int:
        return 0  # as of an artifact store that does not report sizes

    def download(self, model: ModelVersion, destination: Path, file: str = "") -> Path:
        if file:
            return Path(shutil.copy(self.folder / file, destination / file))
        return Path(shutil.copytree(self.folder, destination / "files"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    file = folder / "MLmodel"
    description = yaml.safe_load(file.read_text())
    change(description)
    file.write_text(yaml.safe_dump(description))
    return folder
