"""Clients that send requests through a proxy in a background thread."""

import asyncio
import threading

from tests.support import compose
from tests.support.api_server import BODY, Connection

# Between two requests of one client, because processes that start meanwhile need CPU time, too.
PAUSE_S = 0.2


class Load:
    """`with Load(port) as load:`; afterwards, `load.failures` lists the responses other than 200."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self._port, self._clients = port, clients
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))

    async def _all(self) -> None:
        await asyncio.gather(*(self._ask() for _ in range(self._clients)))

    async def _ask(self) -> None:
        connection = Connection(self._port)
        while not self._over.is_set():
            try:
                answer = await connection.ask("POST", "/scores", BODY, key=compose.EXAMPLE_VALUES["SERVING_API_KEYS"])
                self.answers += 1
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {answer.body.decode()}")
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failures.append(repr(error))
                await connection.close()
            await asyncio.sleep(PAUSE_S)
        await connection.close()

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
