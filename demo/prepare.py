"""The prerequisites of the demo's servers: data, applied definitions, a champion, and a batch request."""

from demo import show
from demo.data import DRIVERS, extend_driver_stats, this_hour, write_batch_request
from demo.environment import FEATURE_DATA, REQUEST, REQUESTS
from demo.training import champion_version, train_and_promote
from scoring.features.feature_store import apply_definitions, open_feature_store
from scoring.imports import import_feast, import_model_libraries
from scoring.settings import Settings

DRIVER_STATS = FEATURE_DATA / "driver_stats.parquet"


def prepare(settings: Settings) -> None:
    """Bring the demo's state up to date. The state of an earlier demo is kept and extended.

    Raises:
        ServingError: Feast failed.
        CannotStart: MLflow failed.
    """
    show.busy("Importing Feast and MLflow")
    import_model_libraries()
    import_feast()
    hour = this_hour()
    added = extend_driver_stats(DRIVER_STATS, hour)
    store = open_feature_store(settings)
    applied = apply_definitions(store)
    show.features(len(DRIVERS), added, applied)

    champion = champion_version(settings.mlflow_tracking_uri)
    if champion is None:
        trained = train_and_promote(store, settings.mlflow_tracking_uri, DRIVER_STATS, hour, seed=1)
        show.trained(trained)
    else:
        show.champion_kept(champion)

    show.batch_request(write_batch_request(REQUESTS / f"{REQUEST}.csv", hour))
