"""How much of everything is measured."""

import msgspec


class Scale(msgspec.Struct, frozen=True):
    """A whole run, or a quick one for trying."""

    rounds: int
    """How often each figure is taken; the median is told."""
    seconds: float
    """Of load, in each online round."""
    largest_rows: int
    """Rows of the largest batch."""


WHOLE = Scale(rounds=5, seconds=2, largest_rows=10_000_000)
QUICK = Scale(rounds=2, seconds=1, largest_rows=100_000)
