"""The statistics of the benchmarks, and the versions of their peers."""

import hashlib
import itertools
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.batch.joins import Join
from benchmarks.batch.world import FEATURES
from benchmarks.environments import DISTRIBUTION, SHARED, requirements_of
from benchmarks.online.contestants import ALL, BESIDE_FEAST, COMPARED, Contestant
from benchmarks.online.rounds import Round
from benchmarks.online.sections import WIDE
from benchmarks.page import SECTIONS, title_of, write_page
from benchmarks.paths import ROOT
from benchmarks.processes import cpu_s
from benchmarks.results import Result, read, save, this_machine
from benchmarks.targets import targets

BURN = "import time\nwhile time.process_time() < {0}: pass"


def pins(file: Path) -> dict[str, str]:
    """Package → version, of a requirements file, for the Python that is oldest."""
    found = re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)(?: ; (.*?))? \\$", file.read_text(), re.MULTILINE)
    return {name: version for name, version, marker in found if ">= '3.12'" not in marker}


def rounds(server: str, requests_s: float, p99_ms: float = 5.0, cpu_us: float = 200.0) -> list[Round]:
    """Three rounds of one server, the middle one as given."""
    return [
        Round(server, requests_s * each, 1.0, p99_ms * each, cpu_us * each, 50.0, 100.0, 0) for each in (0.5, 1.0, 9.0)
    ]


def result(section: str, *every: list[Round]) -> Result:
    rows = [msgspec.to_builtins(each) for server in every for each in server]
    return Result(section, "abc1234", "2026-11-22T12:00:00+00:00", 60.0, this_machine(), {}, rows)


@pytest.fixture
def online_5() -> Result:
    return result(
        "online-5",
        rounds("ours", 4000.0, p99_ms=6.0, cpu_us=210.0),
        rounds("bentoml", 160.0, p99_ms=150.0),
        rounds("mlserver", 240.0, p99_ms=5.0),
        rounds("fastapi", 250.0, p99_ms=120.0),
        rounds("constant", 7000.0, cpu_us=140.0),
    )


@pytest.mark.parametrize("peer", DISTRIBUTION)
def test_a_peer_is_pinned_to_what_it_shares_with_us(peer):
    ours, theirs = pins(ROOT / "requirements" / "all.txt"), pins(requirements_of(peer)[0])
    assert {name: theirs[name] for name in SHARED} == {name: ours[name] for name in SHARED}
    assert DISTRIBUTION[peer] in theirs


def test_a_ratio_is_one_of_medians_and_a_target_that_is_missed_is_said_to_be(online_5):
    came_out = {target.what: target for target in targets({"online-5": online_5})}

    (rate,) = (target for what, target in came_out.items() if "x BentoML" in what)
    assert (rate.measured, rate.met) == ("25.0", True)
    (latency,) = (target for what, target in came_out.items() if "p99" in what)
    assert (latency.wanted, latency.measured, latency.met) == ("below every peer's (5.00)", "6.00", False)
    (cpu,) = (target for what, target in came_out.items() if "CPU" in what)
    assert (cpu.measured, cpu.met) == ("1.50", True)


def test_the_page_shows_what_was_measured_and_names_what_was_not(tmp_path, online_5):
    save(tmp_path, online_5)
    assert read(tmp_path, "online-5") == online_5
    write_page(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()

    wide = {section for sections in WIDE.values() for section in sections}
    assert "| **model-serving** | 4,000 (2,000-36,000) | 25.0 |" in page
    assert page.count("Not measured.") == len(SECTIONS) - 1 - len(wide) + len(WIDE)
    assert all(title_of(section) in page for section in SECTIONS if section not in wide)
    assert "<!--" not in page.replace("<!-- Generated", "")


def test_the_page_begins_with_a_picture_and_a_table_of_speeds_and_their_targets(tmp_path, online_5):
    save(tmp_path, online_5)
    write_page(tmp_path, tmp_path / "page.md")

    first, _, _ = (tmp_path / "page.md").read_text().partition("\n## ")
    row = "| 5 ids, ElasticNet | 4,000 requests/s, p99 6.00 ms | BentoML: 160 requests/s, p99 150 ms | **25.0** |"
    assert row in first
    picture = ElementTree.fromstring((tmp_path / "images" / "benchmarks.svg").read_text())  # noqa: S314 - its own file
    assert [text.text for text in picture.iterfind(".//{*}text")] == ["5 ids, ElasticNet", "25.0x"]


def test_feature_sets_of_each_width_share_a_table(tmp_path):
    peers = ("bentoml", "feast", "feast-precomputed")
    results = {
        f"wide-5-{ids}": result(
            f"wide-5-{ids}", rounds("ours", 1000.0 * factor), *(rounds(each, 50.0) for each in peers)
        )
        for ids, factor in ((5, 2), (100, 1), (500, 0.5))
    }
    for each in results.values():
        save(tmp_path, each)
    write_page(tmp_path, tmp_path / "page.md")
    assert "| 100 | **model-serving** | 16 | 1,000 (500-9,000) | 20.0 |" in (tmp_path / "page.md").read_text()

    rate, *_ = (target for target in targets(results) if "x BentoML" in target.what)
    assert (rate.measured, rate.wanted, rate.met) == ("40.0, 20.0, 10.0", "at least 15.0 each", False)


def test_a_request_body_asks_for_exactly_these_drivers():
    for kind in itertools.chain(ALL, BESIDE_FEAST, *COMPARED.values()):
        contestant: Contestant = kind(Path("/nowhere"))
        body = contestant.body([1001, 1002]).decode()
        assert "[1001,1002]" in body
        assert "IDS" not in body
        assert "COUNT" not in body


def test_batch_contenders_need_no_test_packages():
    code = "import sys; sys.modules['pytest'] = None; import benchmarks.batch.tasks"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("prefix", ["driver_stats__", "driver_stats:", ""])
def test_joined_features_are_compared_whatever_a_store_calls_them(tmp_path, prefix):
    join = Join.__new__(Join)
    join.output = tmp_path / "joined.parquet"
    features = {f"{prefix}{name}": [2.0, 1.0] for name in FEATURES}
    pq.write_table(pa.table({"driver_id": [7, 8], "ride": [1, 0], **features}), join.output)
    digest = hashlib.sha256(np.array([1.0, 2.0] * len(FEATURES)).tobytes()).hexdigest()
    assert join.outcome() == {"rows": 2, "in_order": False, "features": digest}


def test_cpu_of_children_that_have_ended_counts():
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN.format(0.2)!r}]); print(); input()"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        assert cpu_s(parent.pid) > 0.18
        parent.stdin.close()
