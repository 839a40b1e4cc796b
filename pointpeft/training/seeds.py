"""Independent seeds derived from one seed."""

import hashlib


def derive_seed(*keys: int | str) -> int:
    """A 62-bit seed that depends on all keys; the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
