"""Texts that the server generates for one HTTP request, and how they reach the event loop."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator

from malora_jax.models.detokenization import TextStream
from malora_jax.models.engine import GenerationRequest, Token
from malora_jax.serving.errors import ApiError


@dataclasses.dataclass
class TextPiece:
    """A new part of a text.

    Attributes:
        text: New text that can be shown; incomplete characters and possible beginnings of a stop
            string are held back.
        tokens: New tokens. If a stop string ends the text, the tokens may extend beyond `text`.
        finish_reason: 'stop' or 'length' in the last piece, else None.
    """

    text: str
    tokens: list[Token]
    finish_reason: str | None


class Generation:
    """The texts of one HTTP request; may be used only in the event loop's thread.

    Attributes:
        texts: Texts, in the order of the response.
        loop: Event loop that handles the request.
    """

    def __init__(self, model: str, count: int):
        self.texts = [PendingText(self, model, index) for index in range(count)]
        self.loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, TextPiece | ApiError]] = asyncio.Queue()

    def put(self, index: int, piece: TextPiece | ApiError) -> None:
        """Add a new piece of a text, or the error that ends it.

        Args:
            index: Index of the text in the response.
            piece: New piece or error.
        """
        self._queue.put_nowait((index, piece))

    async def pieces(self) -> AsyncIterator[tuple[int, TextPiece]]:
        """Yield new pieces of all texts, each with the index of its text, until all are finished.

        Raises:
            ApiError: The generation of a text failed.
        """
        running = len(self.texts)
        while running:
            index, piece = await self._queue.get()
            if isinstance(piece, ApiError):
                raise piece
            running -= piece.finish_reason is not None
            yield index, piece


class PendingText:
    """A text that is queued or being generated.

    Only the detokenizer thread uses `is_over`. Only the engine thread uses `generated_ids`,
    `repeats_left` and `is_suspect`.

    Attributes:
        generation: All texts of the same HTTP request.
        model: Name of the model.
        index: Index of the text in the response.
        request: Request to the engine; set by `Scheduler.submit`.
        seed: Random seed that all texts of the HTTP request share; may be None if `request.key` is
            set or decoding is greedy.
        stream: Incremental decoder from tokens to text.
        is_over: Whether the last piece was delivered.
        generated_ids: Ids of the tokens that the engine has generated so far.
        repeats_left: Number of these tokens that must still be generated again after an engine
            reset.
        is_suspect: Whether this text may have caused the failure of a step with several texts.
    """

    request: GenerationRequest
    seed: int | None
    stream: TextStream

    def __init__(self, generation: Generation, model: str, index: int):
        self.generation = generation
        self.model = model
        self.index = index
        self.is_over = False
        self.generated_ids: list[int] = []
        self.repeats_left = 0
        self.is_suspect = False
