"""What may be loaded of a model version, and what loading it may cost."""

from typing import Self

import msgspec

from scoring.settings import Settings


class LoadingRules(msgspec.Struct, frozen=True):
    """The settings that govern the loading of model files. The trial process and Spark's executors get them as JSON."""

    formats: tuple[str, ...]
    """Allowed serialization formats."""
    trusted_types: tuple[str, ...]
    """Types that a skops file may hold beyond the defaults of skops."""
    output_column: int | None
    """Output column for versions without the tag `serving.output_column`."""
    max_bytes: int
    """Size limit of one version's files."""
    max_memory_bytes: int
    """Address space that a trial may add to what the libraries take."""
    timeout_s: float
    """Time limit of a trial."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The rules that the settings declare."""
        return cls(
            formats=settings.model_formats,
            trusted_types=settings.skops_trusted_types,
            output_column=settings.output_column,
            max_bytes=settings.max_model_bytes,
            max_memory_bytes=settings.max_load_memory_bytes,
            timeout_s=settings.load_timeout_s,
        )
