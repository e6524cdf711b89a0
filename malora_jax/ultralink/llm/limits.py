"""Limits on the tokens and the price of all requests, and on requests and tokens per minute.

Both count an upper bound for a request in progress, and the actual number once its reply is there.
"""

import asyncio
import collections
import contextlib
import dataclasses
from collections.abc import AsyncIterator

from malora_jax.errors import UserError

# A minute, and a second for requests that reach the server faster than an earlier request.
_WINDOW_S = 61.0
# Maximum time between two looks at the requests of the last minute.
_LOOK_S = 0.2


@dataclasses.dataclass(frozen=True)
class Amount:
    """Tokens and their price in US dollars, which is 0 if it is unknown."""

    tokens: int = 0
    price: float = 0.0

    def __add__(self, other: 'Amount') -> 'Amount':
        """Return the sum of both amounts."""
        return Amount(self.tokens + other.tokens, self.price + other.price)

    def __sub__(self, other: 'Amount') -> 'Amount':
        """Return the difference of both amounts."""
        return Amount(self.tokens - other.tokens, self.price - other.price)

    def __mul__(self, times: int) -> 'Amount':
        """Return a multiple of the amount."""
        return Amount(times * self.tokens, times * self.price)


@dataclasses.dataclass
class Reservation:
    """Reservation for a request in progress.

    Attributes:
        used: Amount that the request has used, which its owner sets.
    """

    used: Amount = Amount()


class Budget:
    """Limits on total tokens and price, with reservations for requests in progress."""

    def __init__(self, limits: Amount, used: Amount):
        """Create the budget.

        Args:
            limits: Maximum amounts; 0 = no limit.
            used: Amounts used before, which count towards the limits.
        """
        self._limits = limits
        self._used = used
        self._reserved = Amount()
        self._in_progress = 0
        self._changed = asyncio.Condition()

    def warning(self, expected: Amount) -> str:
        """Return a sentence if an expected amount probably exceeds a limit; '' otherwise."""
        exceeded = self._exceeded_by(expected)
        return f'The run will probably stop at {exceeded}.' if exceeded else ''

    def add(self, used: Amount) -> None:
        """Count an amount that was used without a reservation."""
        self._used += used

    @contextlib.asynccontextmanager
    async def reserve(self, amount: Amount) -> AsyncIterator[Reservation]:
        """Reserve an amount for one request while the `with` block runs.

        If a limit may be exceeded, wait for requests in progress, which usually use less than they
        reserved.

        Args:
            amount: Upper bound of the amount that the request uses.

        Yields:
            The reservation, in which the block sets the used amount.

        Raises:
            UserError: The request may exceed a limit even after all others have finished.
        """
        reservation = Reservation()
        async with self._changed:
            await self._changed.wait_for(
                lambda: not self._exceeded_by(amount) or not self._in_progress
            )
            self._check(amount)
            self._reserved += amount
            self._in_progress += 1
        try:
            yield reservation
        finally:
            async with self._changed:
                self._reserved -= amount
                self._in_progress -= 1
                self._used += reservation.used
                self._changed.notify_all()

    def _check(self, amount: Amount) -> None:
        exceeded = self._exceeded_by(amount)
        if exceeded:
            raise UserError(
                f'The next request might exceed {exceeded}. Repeat the command with a higher limit '
                'to resume.'
            )

    def _exceeded_by(self, amount: Amount) -> str:
        """Return the limit that a further request may exceed, and what is used; '' for none."""
        needed = self._used + self._reserved + amount
        if 0 < self._limits.tokens < needed.tokens:
            used = f'{self._used.tokens:,} tokens are used already'
            return f'--token-limit={self._limits.tokens:,}; {used}'
        if 0 < self._limits.price < needed.price:
            return f'--price-limit={self._limits.price:,}; ${self._used.price:,.4f} is used already'
        return ''


@dataclasses.dataclass
class Timed:
    """An amount that a `MinuteLimit` has counted.

    Attributes:
        time: Time of the event loop in seconds.
        amount: Counted amount.
        is_recent: Whether the amount still counts.
    """

    time: float
    amount: int
    is_recent: bool = True


class MinuteLimit:
    """A limit on an amount, such as a number of tokens, in any minute."""

    def __init__(self, limit: int):
        """Create the limit.

        Args:
            limit: Maximum amount in any minute; 0 = no limit.
        """
        self._limit = limit
        self._recent: collections.deque[Timed] = collections.deque()
        self._total = 0  # Sum of the recent amounts.
        self._turn = asyncio.Lock()

    async def acquire(self, amount: int) -> Timed:
        """Wait until an amount fits into the last minute, and count it.

        An amount above the limit waits until nothing else was counted for a minute.

        Args:
            amount: Upper bound of the amount.

        Returns:
            The counted amount, for `correct`.
        """
        clock = asyncio.get_running_loop().time
        if not self._limit:
            return Timed(clock(), 0, is_recent=False)
        async with self._turn:  # The others wait in order.
            while True:
                self._forget_before(clock() - _WINDOW_S)
                if not self._recent or self._total + amount <= self._limit:
                    break
                await asyncio.sleep(_LOOK_S)
            timed = Timed(clock(), 0)
            self._recent.append(timed)
            self.correct(timed, amount)
        return timed

    def correct(self, timed: Timed, amount: int) -> None:
        """Replace a counted amount by the actual one."""
        if timed.is_recent:
            self._total += amount - timed.amount
            timed.amount = amount

    def _forget_before(self, time: float) -> None:
        while self._recent and self._recent[0].time <= time:
            oldest = self._recent.popleft()
            self._total -= oldest.amount
            oldest.is_recent = False
