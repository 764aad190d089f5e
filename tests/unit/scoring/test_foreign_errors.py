"""Messages of other software are cut to one line, without secrets."""

import pytest

from scoring.foreign_errors import first_line, without_secrets

SECRET = "s3cret"


@pytest.mark.parametrize(
    "uri",
    [
        f"http://user:{SECRET}@host:5000/path",
        f"http://user:{SECRET}/AA@host:5000/path",
        f"http://user:{SECRET}@AA@host:5000/path",
        f"http://host:5000/path?token={SECRET}",
        f"postgresql://host:5000/path?user=u&password={SECRET}",
    ],
)
def test_addresses_lose_users_passwords_and_queries(uri: str) -> None:
    assert without_secrets(uri).partition("://")[2] == "host:5000/path"
    message = first_line(ValueError(f"GET {uri} failed (see {uri}); giving up"))
    assert SECRET not in message
    assert "host:5000/path" in message
    assert "giving up" in message


def test_only_the_first_line_is_told_and_not_more_than_asked() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("x" * 300), 10) == "xxxxxxxxx…"
    assert first_line(ValueError()) == "ValueError"
