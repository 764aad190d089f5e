"""API keys: which callers may request scores."""

import hashlib
import hmac
import ipaddress

from api.errors import KeyNeeded
from scoring.errors import SettingsError
from scoring.secret import Secret
from scoring.settings import Settings

SCHEME = "bearer"


class Keys:
    """The valid API keys, kept as digests. Without any, every caller is admitted."""

    def __init__(self, keys: tuple[Secret, ...] = ()) -> None:
        self._digests = [_digest(key.reveal()) for key in keys]

    @property
    def required(self) -> bool:
        """Whether a caller needs a key."""
        return bool(self._digests)

    def admit(self, authorization: bytes | None) -> bool:
        """Return whether the value of the header Authorization contains a valid key, or none is required.

        Every key is compared, each in constant time, so the duration reveals nothing about any of them.
        """
        if not self._digests:
            return True
        scheme, _, key = (authorization or b"").decode("latin-1").partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == SCHEME and any(matches)

    def check(self, authorization: bytes | None) -> None:
        """Raise KeyNeeded unless `admit` returns true."""
        if not self.admit(authorization):
            raise KeyNeeded


def keys_from(settings: Settings) -> Keys:
    """Return the configured API keys.

    Raises:
        SettingsError: a key is invalid, their file can't be read, or the API would listen beyond loopback without keys.
    """
    keys = _usable("SERVING_API_KEYS", settings.api_keys) + _usable("SERVING_API_KEYS_FILE", _keys_in_file(settings))
    if not keys and not settings.allow_anonymous and not _is_loopback(settings.host):
        raise SettingsError(
            "SERVING_API_KEYS",
            f"is not set and SERVING_HOST is {settings.host!r}, which is not loopback: set keys, or set "
            "SERVING_ALLOW_ANONYMOUS=true to let anyone who can reach the port request scores.",
        )
    return Keys(keys)


def _usable(variable: str, keys: tuple[Secret, ...]) -> tuple[Secret, ...]:
    for text in (key.reveal() for key in keys):
        if not (text.isascii() and text.isprintable()) or " " in text:
            problem = "contains a key that no HTTP header can carry: use visible ASCII characters without spaces."
            raise SettingsError(variable, problem)
    return keys


def _keys_in_file(settings: Settings) -> tuple[Secret, ...]:
    file = settings.api_keys_file
    if file is None:
        return ()
    variable = "SERVING_API_KEYS_FILE"
    try:
        keys = tuple(Secret(line.strip()) for line in file.read_text("utf-8").splitlines() if line.strip())
    except OSError as error:
        raise SettingsError(variable, f"is {str(file)!r}, which can't be read ({error.strerror}).") from None
    except ValueError as error:  # a key that is too short, or not UTF-8: the message contains neither
        problem = "the file is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise SettingsError(variable, f"is {str(file)!r}, which has an invalid key: {problem}.") from None
    if not keys:
        raise SettingsError(variable, f"is {str(file)!r}, which has no key.")
    return keys


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
