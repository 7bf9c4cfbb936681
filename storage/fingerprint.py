"""The 64-bit fingerprint of an idempotency key: xxh3-64 over `project_id NUL event_id`.

Neither part can contain NUL (the gateway refuses it), so the joined form is unambiguous. The window
holds n fingerprints; the chance that a new event is taken for a duplicate is n / 2**64.
"""

from xxhash import xxh3_64_intdigest

__all__ = ["batch_fingerprint", "fingerprint", "partition_of"]


def fingerprint(project_id: str, event_id: str) -> int:
    return xxh3_64_intdigest(f"{project_id}\0{event_id}".encode())


def batch_fingerprint(batch_id: bytes) -> int:
    """Of a whole batch, in the same window: it begins with NUL, which no project id does."""
    return xxh3_64_intdigest(b"\0" + batch_id)


_PARTITION_SEED = 0x616E_616C


def partition_of(project_id: str, partitions: int) -> int:
    """The partition of a project: stable for the life of a system, because `partitions` is."""
    return xxh3_64_intdigest(project_id.encode(), seed=_PARTITION_SEED) % partitions
