"""Strings that are printed as asterisks, so that logs, messages and representations of the settings omit them."""

MIN_LENGTH = 16


class Secret:
    """One secret. Only `reveal` returns it.

    Raises:
        ValueError: it is shorter than MIN_LENGTH characters and could be guessed.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if len(text) < MIN_LENGTH:
            raise ValueError(f"each needs at least {MIN_LENGTH} characters")
        self._text = text

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)
