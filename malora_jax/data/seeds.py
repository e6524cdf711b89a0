"""Seeds derived from names, the same on every machine and in every process."""

import hashlib


def stable_seed(*parts: str | int) -> int:
    """A 32-bit seed from a few names and numbers.

    Unlike `hash`, it does not depend on the process; unlike a sum, neighbouring numbers give
    unrelated seeds.
    """
    text = '/'.join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'big')
