"""The example's data: hourly statistics per driver, rated orders, and today's batch request."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from scoring.files.atomic import whole_file

DRIVERS = list(range(1001, 1051))
HISTORY = timedelta(days=14)
COLUMNS = ["event_timestamp", "driver_id", "conv_rate", "acc_rate", "avg_daily_trips", "created"]


def this_hour() -> datetime:
    """Return the start of the current hour, UTC."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


def extend_driver_stats(file: Path, until: datetime) -> int:
    """Extend the drivers' hourly statistics up to the hour `until`, inclusive. Return the number of rows added.

    Existing hours do not change, so values that were materialized from them remain valid. The numbers come from Feast's
    own driver_test_data.
    """
    from feast.driver_test_data import create_driver_hourly_stats_df

    known = pd.read_parquet(file) if file.exists() else None
    since = until - HISTORY if known is None else known["event_timestamp"].max().to_pydatetime() + timedelta(hours=1)
    if since > until:
        return 0
    fresh = create_driver_hourly_stats_df(DRIVERS, since, until + timedelta(hours=1))[COLUMNS]
    fresh = fresh[fresh["event_timestamp"] >= since]  # the generator adds one fixed hour of 2021
    fresh["created"] = fresh["created"].dt.tz_localize("UTC") if fresh["created"].dt.tz is None else fresh["created"]
    rows = fresh if known is None else pd.concat([known, fresh], ignore_index=True)
    with whole_file(file) as part:
        # Microseconds: Feast's duckdb store can't materialize from nanoseconds (feast 0.67).
        rows.to_parquet(part, index=False, coerce_timestamps="us", allow_truncated_timestamps=True)
    return len(fresh)


def make_orders(driver_stats: Path, until: datetime, count: int, seed: int) -> pd.DataFrame:
    """Return past orders with ratings: driver_id, event_timestamp [UTC], rating (0 to 5).

    Ratings rise with the driver's conversion rate, acceptance rate and number of trips, plus noise. A model can learn
    this from the features as of each order.
    """
    from feast.driver_test_data import create_orders_df

    np.random.seed(seed)  # Feast's generator uses the global random state
    orders = create_orders_df([1], DRIVERS, until - HISTORY + timedelta(days=1), until, count)[
        ["driver_id", "event_timestamp"]
    ]
    orders["event_timestamp"] = pd.to_datetime(orders["event_timestamp"], utc=True).astype("datetime64[us, UTC]")
    orders = orders.sort_values("event_timestamp", ignore_index=True)
    then = pd.merge_asof(
        orders,
        pd.read_parquet(driver_stats).sort_values("event_timestamp"),
        on="event_timestamp",
        by="driver_id",
    )
    noise = np.random.default_rng(seed).normal(0, 0.2, len(orders))
    rating = 1 + 2 * then["conv_rate"] + 1.2 * then["acc_rate"] + then["avg_daily_trips"] / 1500 + noise
    return orders.assign(rating=rating.clip(0, 5))


def write_batch_request(file: Path, until: datetime) -> int:
    """Write today's batch request: all drivers and an unknown one at the last three hours. Return its row count."""
    timestamps = [until - timedelta(hours=hours) for hours in (2, 1, 0)]
    rows = pd.DataFrame(
        [
            {"driver_id": driver, "event_timestamp": timestamp.isoformat(), "zone": f"zone-{driver % 4}"}
            for timestamp in timestamps
            for driver in (*DRIVERS, 9999)
        ]
    )
    with whole_file(file) as part:
        rows.to_csv(part, index=False)
    return len(rows)
