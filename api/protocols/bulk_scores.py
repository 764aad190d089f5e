"""Scores the tables of requests, which may have more rows than one micro-batch."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from api.errors import ClientLeft, DeadlineExceeded
from api.model.model_slot import Served
from api.protocols.score_bodies import Answer
from api.protocols.scoring import Scoring
from api.protocols.tables import block_of, decode_table
from api.protocols.wire_format import Call
from scoring.settings import Settings

# The limit of tables, as sent and decompressed, is this multiple of SERVING_MAX_BODY_BYTES.
TABLE_BODIES = 32
# Rows of a larger request that are scored in one micro-batch. Small requests that arrive meanwhile wait for it.
BLOCK_ROWS = 250
# Time between two looks at whether there is room for the next block.
PAUSE_S = 0.005


class BulkScores:
    """Decodes, scores and encodes tables. Used on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._max_entities = settings.max_entities
        self.max_rows = max(settings.max_entities, settings.max_bulk_entities)
        self.max_bytes = TABLE_BODIES * settings.max_body_bytes
        self._deadline_s = settings.bulk_deadline_s
        # Their number bounds the memory that tables take while they are decoded and encoded.
        self._executor = ThreadPoolExecutor(2, "table")

    async def respond(
        self, media: bytes, served: Served, request_id: str, answer: Answer, call: Call, scoring: Scoring
    ) -> bytes:
        """Return the body of the response, from `answer`, to a table in `media`."""
        table = await self._in_thread(decode_table, media, served.schema, call.body, self.max_rows, self.max_bytes)
        if table.num_rows <= self._max_entities:
            request = block_of(served.schema, request_id, table, 0, table.num_rows)
            answer.add(request, await scoring.score(served, request, call.context))
            return answer.finish()
        with scoring.bulk(call.context):
            await self._score_blocks(served, request_id, table, answer, call, scoring)
            return await self._in_thread(answer.finish)  # type: ignore[no-any-return]

    async def _score_blocks(
        self, served: Served, request_id: str, table: pa.Table, answer: Answer, call: Call, scoring: Scoring
    ) -> None:
        """Score a table with one version, one block after the other, each as a request of its own.

        A block may take all the time that is left to the request: of hundreds of blocks, one may well be slow. The
        whole answer is kept until the last block is scored, so that an error of any block still has its status.
        """
        ends_at = time.monotonic() + self._deadline_s
        disconnect = asyncio.ensure_future(call.disconnected())
        try:
            for start in range(0, table.num_rows, BLOCK_ROWS):
                while scoring.full and time.monotonic() < ends_at:
                    await asyncio.sleep(PAUSE_S)
                if disconnect.done():
                    raise ClientLeft
                remaining_s = max(ends_at - time.monotonic(), 0)
                request = block_of(served.schema, request_id, table, start, min(BLOCK_ROWS, table.num_rows - start))
                answer.add(request, await scoring.score(served, request, call.context, remaining_s))
        except DeadlineExceeded:
            raise DeadlineExceeded(self._deadline_s) from None
        finally:
            disconnect.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await disconnect

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
