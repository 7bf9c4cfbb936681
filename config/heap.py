"""Memory in processes that work with blocks of megabytes: the C library's heap, and Arrow in it."""

import ctypes

ARROW_IN_HEAP = {"ARROW_DEFAULT_MEMORY_POOL": "system"}
"""For the environment of a process that loads Arrow: its blocks come from the C library.

Arrow's own allocator keeps what a thread has freed for that thread, and no other can give it back: after a merge of
800,000 events the lake keeper stayed at 377 MB, and is at 103 with this. A batcher takes a third less memory, a gateway
a tenth, and nothing takes longer.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MIB = 1024 * 1024
_KEPT_BYTES = 64 * _MIB
_LARGEST_KEPT_BYTES = 32 * _MIB
"""glibc takes no larger threshold."""


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, up to 64 MB, for the next batch.

    By default glibc gives large blocks back to the kernel as soon as they are free, and who needs the same again some
    times a second pays for each page with a fault. At 100 events a request that was 0.22 faults an event in a batcher
    and a seventh of its CPU; it is 0.04. Where there is no glibc, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
