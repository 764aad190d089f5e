"""Processes forked from one that has Feast, MLflow and scikit-learn imported, which takes 7 s of CPU time."""

import multiprocessing as mp

from scoring.imports import import_feast, import_model_libraries

import_model_libraries()
import_feast()
# A fork of pytest itself would copy locks held by threads.
FORKS = mp.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "scoring.feast_plugins.offline_store", "tests.support.batch_job"])
