"""The problems that other parts of the deployment repeat agree with the API's own."""

import json
import re
from pathlib import Path

from api.protocols.problems import PROBLEM_TYPES, TYPE_PREFIX

NGINX = Path(__file__).resolve().parents[4] / "deploy" / "nginx" / "nginx.conf"


def test_nginx_answers_with_the_types_titles_and_statuses_of_the_api() -> None:
    bodies = re.findall(r"return \d+ '(\{\"type\".*\})';", NGINX.read_text())
    problems = [json.loads(body.replace("$status", "400")) for body in bodies]
    ours = {(TYPE_PREFIX + kind.name, kind.title, kind.status) for kind in PROBLEM_TYPES}
    assert len(problems) == 4
    assert {(problem["type"], problem["title"], problem["status"]) for problem in problems} <= ours
