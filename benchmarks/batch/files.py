"""`python -m benchmarks.batch.files SECTION MODEL ROWS`: write the contenders' input files."""

import sys

from benchmarks.batch.joins import BatchInput
from benchmarks.batch.world import FEW, joined_rows, open_batch_world, request_of


def main(section: str, model: str, rows: int) -> None:
    """Write requests of FEW and of `rows` rows and, for `predict`, the files that the product joins from them."""
    world = open_batch_world(model)
    for count in (FEW, rows):
        request_of(world, count)
        joined = joined_rows(world, count)
        if section == "predict":
            joined.parent.mkdir(parents=True, exist_ok=True)
            join = BatchInput(count)
            join.world = world
            join.prepare()
            join.output = joined
            join.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
