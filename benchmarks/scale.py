"""Number of rounds, duration of load and size of batches."""

import msgspec


class Scale(msgspec.Struct, frozen=True):
    """The scale of a full or a quick run."""

    rounds: int
    """Measurements per figure; the median is reported."""
    seconds: float
    """Duration of load in each online round."""
    largest_rows: int
    """Rows of the largest batch."""


WHOLE = Scale(rounds=5, seconds=2, largest_rows=10_000_000)
QUICK = Scale(rounds=2, seconds=1, largest_rows=100_000)
