"""Who may ask for scores: callers with one of the keys, or anybody where no keys are set."""

import hashlib
import hmac
import ipaddress

from api.errors import KeyNeeded
from scoring.errors import SettingsError
from scoring.secret import Secret
from scoring.settings import Settings

SCHEME = "bearer"


class Keys:
    """The keys that open the API, kept as digests. None: open to anybody."""

    def __init__(self, keys: tuple[Secret, ...] = ()) -> None:
        """Args: all that are valid now."""
        self._digests = [_digest(key.reveal()) for key in keys]

    @property
    def needed(self) -> bool:
        """Whether a caller needs one."""
        return bool(self._digests)

    def check(self, authorization: bytes | None) -> None:
        """Raise KeyNeeded unless the value of the header Authorization holds a key, or none is needed.

        Every key is compared, each in constant time, so the time taken reveals nothing about any of them.
        """
        if not self._digests:
            return
        scheme, _, key = (authorization or b"").decode("latin-1").partition(" ")
        given = _digest(key.strip())
        fits = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != SCHEME or not any(fits):
            raise KeyNeeded


def keys_from(settings: Settings) -> Keys:
    """The keys of the settings.

    Raises:
        SettingsError: their file can't be read, or the API would listen beyond loopback without keys.
    """
    keys = _usable("SERVING_API_KEYS", settings.api_keys) + _usable("SERVING_API_KEYS_FILE", _keys_in_file(settings))
    if not keys and not settings.allow_anonymous and not _is_loopback(settings.host):
        raise SettingsError(
            "SERVING_API_KEYS",
            f"is not set and SERVING_HOST is {settings.host!r}, which is not loopback: set keys, or "
            "SERVING_ALLOW_ANONYMOUS=true if whoever reaches the port may ask.",
        )
    return Keys(keys)


def _usable(variable: str, keys: tuple[Secret, ...]) -> tuple[Secret, ...]:
    for text in (key.reveal() for key in keys):
        if not (text.isascii() and text.isprintable()) or " " in text:
            problem = "holds a key that no header can carry: use letters, digits and signs of ASCII, without spaces."
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
    except ValueError as error:  # a key that is too short, or not UTF-8: the message shows neither
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
