"""Lists that come in pages."""

from collections.abc import Iterator
from typing import Any

from analytics_actors.cli.api import Api

PAGE_SIZE = 1000


def all_pages(api: Api, path: str, name: str, **parameters: str | None) -> Iterator[Any]:
    """The entries of all pages; each page is asked for when the one before is used up."""
    after: str | None = None
    while True:
        page = api.get(path, {"limit": PAGE_SIZE, "after": after, **parameters})
        yield from page[name]
        after = page.get("next")
        if after is None:
            return
