"""The check of an object store, by use: what it needs to be able to do is done once with a small object."""

import uuid

from storage.errors import Misconfigured
from storage.object_store import ObjectStore, PutResult


async def probe(store: ObjectStore) -> None:
    """Raises `Misconfigured` or `Unavailable`."""
    key = f"checks/{uuid.uuid4().hex}"
    await store.put_if_absent(key, b"first")
    try:
        if await store.put_if_absent(key, b"second") is not PutResult.OTHER or await store.get(key) != b"first":
            raise Misconfigured(
                "the object store replaces objects although it is told not to (If-None-Match: *): a process that was"
                " taken for dead could change a file of the lake. Use a folder, or a server that keeps the condition"
            )
        async for _ in store.list(key):
            break
    finally:
        await store.delete([key])
