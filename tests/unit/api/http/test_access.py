"""Which callers may request scores."""

from pathlib import Path

import pytest
from litestar.testing import TestClient

from api.app import create_app
from api.errors import KeyNeeded
from api.http.access import keys_from
from scoring.errors import SettingsError
from scoring.secret import Secret
from scoring.settings import Settings
from tests.support.fakes import FakeLoader

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "api.example.org"])  # noqa: S104 - nothing listens there
def test_beyond_loopback_the_api_needs_keys_unless_anonymous_callers_are_allowed(host: str) -> None:
    with pytest.raises(SettingsError, match=r"^SERVING_API_KEYS is not set and SERVING_HOST is .*SERVING_ALLOW_ANONYM"):
        create_app(Settings(model_name="m", host=host), FakeLoader())
    create_app(Settings(model_name="m", host=host, allow_anonymous=True), FakeLoader())
    create_app(Settings(model_name="m", host=host, api_keys=(Secret(KEY),)), FakeLoader())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_on_loopback_no_key_is_required(host: str) -> None:
    keys = keys_from(Settings(model_name="m", host=host))
    assert not keys.required
    keys.check(None)


def test_the_keys_of_settings_and_file_are_valid_and_no_others(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"\n{OTHER}\n")
    keys = keys_from(Settings(model_name="m", api_keys=(Secret(KEY),), api_keys_file=file))
    for given in (f"Bearer {KEY}", f"bearer {OTHER}", f"Bearer  {KEY}"):
        keys.check(given.encode())
    with pytest.raises(KeyNeeded):
        keys.check(None)
    for given in ("", KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY},{OTHER}", "é"):
        with pytest.raises(KeyNeeded):
            keys.check(given.encode())


@pytest.mark.parametrize(("content", "problem"), [(None, "can't be read"), ("\n", "no key"), ("short", "at least 16")])
def test_an_unusable_key_file_is_reported_in_one_line_without_its_content(
    tmp_path: Path, content: str | None, problem: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=f"^SERVING_API_KEYS_FILE .*{problem}") as caught:
        keys_from(Settings(model_name="m", api_keys_file=file))
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("key", ["schlüssel-0123456789", "two words 0123456789", "tab\t0123456789abcdef"])
def test_a_key_that_no_header_can_carry_is_refused_at_startup(tmp_path: Path, key: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{OTHER}\n{key}\n", "utf-8")
    for variable, settings in {
        "SERVING_API_KEYS ": Settings(model_name="m", api_keys=(Secret(key),)),
        "SERVING_API_KEYS_FILE ": Settings(model_name="m", api_keys_file=file),
    }.items():
        with pytest.raises(SettingsError, match=f"^{variable}.*no HTTP header can carry") as caught:
            keys_from(settings)
        assert key not in str(caught.value)


def test_no_key_is_printed_with_the_settings_or_in_their_errors() -> None:
    settings = Settings.from_environment({"SERVING_MODEL_NAME": "m", "SERVING_API_KEYS": f"{KEY},{OTHER}"})
    assert [key.reveal() for key in settings.api_keys] == [KEY, OTHER]
    assert KEY not in repr(settings) + str(settings)
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"SERVING_MODEL_NAME": "m", "SERVING_API_KEYS": f"{KEY},guessable"})
    assert KEY not in str(caught.value)
    assert "guessable" not in str(caught.value)


def test_only_the_scoring_routes_require_a_key_and_the_document_describes_it() -> None:
    settings = Settings(model_name="m", api_keys=(Secret(KEY),))
    with TestClient(create_app(settings, FakeLoader())) as client:
        for path in ("/live", "/version", "/metrics", "/", "/openapi.json"):
            assert client.get(path).status_code in {200, 503}, path
        for path in ("/inference", "/scores"):
            answer = client.post(path, content=b"{", headers={"Content-Type": "application/json"})
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        paths = client.get("/openapi.json").json()["paths"]
    assert all(paths[path]["post"]["security"] == [{"key": []}] for path in ("/inference", "/scores"))
    assert "401" in paths["/inference"]["post"]["responses"]
