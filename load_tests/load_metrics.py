"""Ten metrics of the events that `load_tests.events` makes, four of them with two dimensions, and with every kind of
aggregation that costs differently: what a project that uses windows a lot would define beside the built-in ones.
"""

from storage.metric_definitions import Filter, MetricDefinition

_BY = ["category", "source"]

LOAD_METRICS = (
    MetricDefinition("views", event_types=["page_view"], dimensions=_BY),
    MetricDefinition("turnover", "sum", event_types=["purchase"], property="price", dimensions=_BY),
    MetricDefinition("visitors", "unique", property="userId", dimensions=["category", "agent=context.userAgent"]),
    MetricDefinition("load_time", "p95", event_types=["page_view"], property="loadMs", dimensions=_BY),
    MetricDefinition("clicks", event_types=["click"], dimensions=["source"]),
    MetricDefinition("mean_price", "mean", event_types=["purchase"], property="price"),
    MetricDefinition("largest_price", "max", event_types=["purchase"], property="price"),
    MetricDefinition("click_position", "p50", event_types=["click"], property="x"),
    MetricDefinition("buyers", "unique", event_types=["purchase"], property="userId"),
    MetricDefinition("slow_views", event_types=["page_view"], filters=[Filter("loadMs", "gte", 500)]),
)

BESIDE_BUILT_IN = (*LOAD_METRICS[:4], LOAD_METRICS[-1])
"""Five that make ten together with the built-in ones, the four with two dimensions among them."""
