"""The asset batch_request: observing it lists files, and leaves the records of the runs alone."""

import os

import dagster as dg

from scoring.files.location import Location
from serving_assets.assets.batch_assets import batch_request
from serving_assets.definitions import definitions
from serving_assets.records.observations import last_seen, seen_event
from serving_assets.records.requests import list_requests
from serving_assets.resources import Serving


def test_observing_lists_new_files_but_does_not_count_as_scoring_them(tmp_path, capfd):
    requests = tmp_path / "requests"
    requests.mkdir()
    for name in ("day1.csv", "day2.csv"):
        (requests / name).write_text(name)
        os.utime(requests / name, (0, 0))
    instance = dg.DagsterInstance.ephemeral(str(tmp_path / "instance"))  # or else it leaks a folder
    scored = list_requests(Location(requests))[0]
    instance.report_runless_asset_event(seen_event(scored, "0" * 64))
    before = last_seen(instance)
    environment = {"SERVING_MODEL_NAME": "m", "SERVING_BATCH_REQUESTS": str(requests)}
    observing = dg.Definitions(
        assets=[batch_request],
        jobs=[dg.define_asset_job("observe", [batch_request])],
        resources={"serving": Serving(environment)},
    )

    assert observing.resolve_job_def("observe").execute_in_process(instance=instance).success

    line = "New or changed files, which the sensor new_batch_request will score: day2.csv"
    assert line in capfd.readouterr().err
    assert last_seen(instance) == before


def test_dagit_knows_it_as_observed_so_that_its_partitions_are_not_missing():
    node = definitions.resolve_asset_graph().get(batch_request.key)
    assert (node.is_observable, node.is_materializable, node.is_partitioned) == (True, False, True)
