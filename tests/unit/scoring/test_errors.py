"""Errors contain no secrets."""

from scoring.errors import RegistryUnreachable

SECRET = "s3cret"


def test_the_registry_is_named_without_its_secrets() -> None:
    uri = f"http://user:{SECRET}@host:5000/path?token={SECRET}"
    message = str(RegistryUnreachable(uri, ValueError(f"GET {uri} failed")))
    assert SECRET not in message
    assert message.count("host:5000/path") == 2
