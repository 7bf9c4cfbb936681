"""Python's cyclic garbage collector in processes that serve."""

import gc


def collect_seldom() -> None:
    """Call it when all that the process will keep is there.

    What lives now lives for ever: the collector need not look at it again (Ray and Arrow alone are 100,000 objects,
    70 ms in which nothing is answered). Decoding and counting make thousands of short-lived containers and no cycles:
    to look for some less often costs a few MB at most.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
