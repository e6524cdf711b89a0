"""Random seeds derived from names, identical on every machine and in every process."""

import hashlib


def stable_seed(*parts: str | int) -> int:
    """Return a 32-bit random seed from a few names and numbers.

    Unlike `hash`, the result does not depend on the process. Adjacent numbers give unrelated seeds,
    unlike a sum of the numbers.
    """
    text = '/'.join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'big')
