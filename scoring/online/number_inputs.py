"""Feature vectors as an array, for rows whose features are all known numbers: most requests to most models.

`ModelFeatures.vectors` checks and converts one Arrow column after the other. For a few rows, that takes longer than the
prediction (docs/adr/013). Here, all features of a type are checked and converted together, with the same results.
"""

import functools
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from scoring.arrow.signature import MAX_EXACT_INTEGER
from scoring.features.model_features import ModelFeatures
from scoring.models.model import Model, array_dtype
from scoring.online.reading import StoreRead

CONVERTED = {
    pa.float32(): {pa.float32(), pa.float64()},
    pa.float64(): {pa.float64()},
    pa.int32(): {pa.int32(), pa.int64(), pa.float64()},
    pa.int64(): {pa.int64(), pa.float64()},
}
"""Type of a feature → the types of inputs to which its values, if they are below 2**53, are converted exactly."""


class NumberInputs:
    """Makes the arrays for a model whose inputs are all filled by stored features."""

    def __init__(self, features: ModelFeatures, dtype: np.dtype, filled: Callable[[int], int]) -> None:
        self._dtype, self._filled = dtype, filled
        names = features.signature.names
        self._count = len(names)
        self._inputs = [(names.index(each.input), each.column) for each in features.features]
        self._places = functools.lru_cache(maxsize=16)(self._find_places)

    def array(self, read: StoreRead) -> np.ndarray | None:
        """Return the array that `Model.call` would make from the vectors; None unless all rows are complete."""
        if read.others or not read.numbers:
            return None
        rows, filled = read.rows, 0
        columns = np.empty((self._count, self._filled(rows)), self._dtype)
        for numbers in read.numbers:
            places = self._places(numbers.names)
            filled += len(places)
            for place, feature in places:
                columns[place, :rows] = numbers.values[feature]
        if filled < self._count:
            return None
        known = columns[:, :rows]
        # False for NaN, too. A double holds the integers between these limits exactly.
        if not (known.min() > -MAX_EXACT_INTEGER and known.max() < MAX_EXACT_INTEGER):
            return None
        columns[:, rows:] = columns[:, rows - 1 : rows]
        return columns.T

    def _find_places(self, names: tuple[str, ...]) -> list[tuple[int, int]]:
        """Return each input that one of some features fills, with the place of that feature."""
        return [(place, names.index(column)) for place, column in self._inputs if column in names]


def number_inputs(features: ModelFeatures, model: Model) -> NumberInputs | None:
    """Return how to make the arrays; None if the model takes frames, or an input needs more than a conversion."""
    dtype, types = array_dtype(model.signature), {each.name: each.dtype for each in model.signature.inputs}
    filled = {each.input for each in features.features if not each.on_demand}
    converted = all(types[each.input] in CONVERTED.get(each.dtype, ()) for each in features.features)
    if not model.as_array or dtype is None or filled != types.keys() or not converted:
        return None
    return NumberInputs(features, dtype, model.filled)
