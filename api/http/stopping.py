"""Whether this process was told to stop: it then says so to whoever asks, and still answers."""


class Stopping:
    """Set once, by the server that caught the signal; read by /ready and wherever a connection could be kept."""

    def __init__(self) -> None:
        self.begun = False

    def begin(self) -> None:
        """From now on /ready answers 503, and answers close their connections."""
        self.begun = True
