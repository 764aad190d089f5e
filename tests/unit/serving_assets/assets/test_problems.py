"""Whether an error refuses one request or ends the run."""

import logging
import re
from pathlib import Path

import dagster as dg
import pytest

from scoring.errors import BatchRequestError, FeatureStoreError, ModelRefused, RegistryUnreachable, StorageError
from scoring.files.location import Location
from serving_assets.assets.problems import RequestProblems

DOWN = FeatureStoreError("joining", "no answer")


class FakeContext:
    """The part of a step's context that `RequestProblems` uses."""

    def __init__(self, keys: str) -> None:
        self.partition_keys = list(keys)
        self.log = logging.getLogger("test")
        self.refused: list[str] = []

    def log_event(self, event: dg.AssetObservation) -> None:
        self.refused.append(event.partition + ("?" if "again" in event.metadata else ""))


def work(**raised: Exception | None) -> tuple[FakeContext, str]:
    """Score requests that raise these; return the refused ones (`?`: retried) and the message of the failed step."""
    context = FakeContext("".join(raised))
    problems = RequestProblems(context, Location("requests"))
    for key, error in raised.items():
        with problems.of(key):
            if error is not None:
                raise error
    with pytest.raises(dg.Failure) as caught:
        problems.fail()
    return context, str(caught.value.description)


def blocked(folder: Path) -> StorageError:
    folder.write_text("a file")
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        problem = StorageError("writing", str(folder / "batch_input.parquet"), error)
        problem.__cause__ = error
    return problem


def test_an_unexpected_error_and_a_blocked_folder_refuse_one_request_and_the_others_are_scored(tmp_path):
    context, message = work(
        a=None,
        b=ZeroDivisionError("by zero"),
        c=blocked(tmp_path / "c"),
        d=BatchRequestError("d.csv", "is bad."),
        e=None,
    )

    assert context.refused == ["b?", "c", "d"]  # b may be scored by a retry
    assert "3 of the run's 5 requests can't be scored." in message
    assert "Batch request requests/b: ZeroDivisionError was raised (by zero)" in message
    assert "a file or folder at this path conflicts with its results" in message
    assert "\n" not in message


@pytest.mark.parametrize("store", [DOWN, StorageError("reading", "s3://bucket/b", OSError("access denied"))])
def test_a_store_that_fails_for_one_request_of_many_refuses_it_and_it_is_retried(store):
    assert work(a=None, b=store, c=None)[0].refused == ["b?"]
    assert work(a=None, b=None, c=store)[0].refused == ["c?"]
    assert work(a=store, b=BatchRequestError("b.csv", "is bad."), c=None)[0].refused == ["b", "a?"]


@pytest.mark.parametrize(
    "raised",
    [
        {"a": None, "b": DOWN, "c": DOWN},
        {"a": DOWN},
        {"a": DOWN, "b": BatchRequestError("b.csv", "is bad.")},
        {"a": RegistryUnreachable("http://registry", "refused")},
        {"a": ModelRefused("ranker/1", "it is too large.")},
    ],
)
def test_an_outage_and_a_bad_version_end_the_run(raised):
    with pytest.raises((FeatureStoreError, RegistryUnreachable, ModelRefused), match=re.compile("failed|gave|refused")):
        work(**raised)
