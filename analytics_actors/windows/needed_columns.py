"""Which columns of events the counting of some metrics looks at: files of the lake are read for these alone."""

from collections.abc import Iterable

from storage.metric_definitions import MetricDefinition, Path, resolve_path


def columns_of(definitions: Iterable[MetricDefinition]) -> frozenset[str]:
    """Names in `storage.event_batch.COLUMNS`, beside those that are always there."""
    found = {"event_type"}
    for definition in definitions:
        dimensions = (dimension.path for dimension in definition.dimension_paths)
        filters = (resolve_path(each.path) for each in definition.filters)
        found.update(map(_column, (*definition.paths, *dimensions, *filters)))
    return frozenset(found)


def _column(path: Path) -> str:
    return path.keys[0] if path.source == "column" else path.source
