"""Settings for loading model versions."""

from typing import Self

import msgspec

from scoring.settings import Settings


class LoadingRules(msgspec.Struct, frozen=True):
    """Settings for loading model files. The trial process and Spark's executors get a copy."""

    formats: tuple[str, ...]
    """Allowed serialization formats."""
    trusted_types: tuple[str, ...]
    """Types that a skops file may contain in addition to the defaults of skops."""
    output_column: int | None
    """Output column for versions without the tag `serving.output_column`."""
    nullable_inputs: frozenset[str]
    """Inputs whose nulls are passed to the model under the policy `impute`."""
    max_bytes: int
    """Size limit of one version's files, in bytes."""
    max_memory_bytes: int
    """Address space, in bytes, that a trial may use beyond what the libraries use."""
    timeout_s: float
    """Time limit of a trial, in seconds."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the rules that the settings declare."""
        return cls(
            formats=settings.model_formats,
            trusted_types=settings.skops_trusted_types,
            output_column=settings.output_column,
            nullable_inputs=frozenset(
                name
                for name, value in settings.impute_values.items()
                if value is None and settings.missing_features == "impute"
            ),
            max_bytes=settings.max_model_bytes,
            max_memory_bytes=settings.max_load_memory_bytes,
            timeout_s=settings.load_timeout_s,
        )
