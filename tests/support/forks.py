"""Processes forked from one that has Feast, MLflow and scikit-learn imported, which takes 7 s of CPU time."""

import multiprocessing as mp

from scoring.imports import import_feast, import_model_libraries

import_model_libraries()
import_feast()
# A fork of pytest itself would copy locks held by threads.
FORKS = mp.get_context("forkserver")
# Also what a fork imports to find its function, and what a batch run imports when it opens the store.
FORKS.set_forkserver_preload(
    [
        __name__,
        "pytest",
        "tests.support.s3",
        "tests.support.servers",
        "tests.support.batch_job",
        "scoring.batch.on_demand_blocks",
        "scoring.feast_plugins.offline_store",
        "feast.infra.online_stores.sqlite",
        "feast.infra.passthrough_provider",
        "feast.infra.registry.file",
    ]
)
