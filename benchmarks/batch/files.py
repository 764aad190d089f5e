"""`python -m benchmarks.batch.files SECTION ROWS`: write what contenders read."""

import sys

from benchmarks.batch.joins import BatchInput
from benchmarks.batch.world import FEW, joined_rows, open_batch_world, request_of


def main(section: str, rows: int) -> None:
    """Write the requests of few and of so many rows and, for `predict`, what the product as it is makes of them."""
    world = open_batch_world()
    for count in (FEW, rows):
        request_of(world, count)
        joined = joined_rows(world, count)
        if section == "predict":
            joined.parent.mkdir(parents=True, exist_ok=True)
            join = BatchInput(count)
            join.prepare()
            join.output = joined
            join.run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
