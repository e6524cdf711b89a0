"""Check of the first replies of a model, before many requests are paid for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from malora_jax.errors import UserError

# Number of replies without an answer after which no further request is sent. As long as there is
# no answer, no more requests than this are in progress.
_MAX_ONLY_THOUGHTS = 5


class FirstReplies:
    """Counts of replies with an answer, and of replies that end while the model still reasons."""

    def __init__(self, model: str):
        """Create the counts.

        Args:
            model: Name of the model, for messages.
        """
        self._model = model
        self._has_answered = False
        self._only_thoughts = self._in_progress = 0
        self._changed = asyncio.Condition()

    def count(self, text: str, is_only_thought: bool) -> None:
        """Count a reply.

        Args:
            text: Text of the reply.
            is_only_thought: Whether the reply ends while the model still reasons.
        """
        self._only_thoughts += is_only_thought
        self._has_answered |= bool(text)

    def check(self) -> None:
        """Check that the model gives answers.

        Raises:
            UserError: The model has only reasoned so far.
        """
        if not self._has_answered and self._only_thoughts >= _MAX_ONLY_THOUGHTS:
            raise UserError(
                f'The model {self._model!r} only reasons: its first {self._only_thoughts} replies '
                'end before an answer. Turn its reasoning off, as with --preset=no_thinking, '
                'or raise the maximum number of tokens of replies.'
            )

    @contextlib.asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Wait until a request may be sent; the `with` block sends it.

        Raises:
            UserError: The model has only reasoned so far.
        """
        async with self._changed:
            await self._changed.wait_for(self._may_send)
            self.check()
            self._in_progress += 1
        try:
            yield
        finally:
            async with self._changed:
                self._in_progress -= 1
                self._changed.notify_all()

    def _may_send(self) -> bool:
        return self._has_answered or (
            # Then, `check` raises the error.
            self._only_thoughts >= _MAX_ONLY_THOUGHTS
            or self._only_thoughts + self._in_progress < _MAX_ONLY_THOUGHTS
        )
