"""The ASGI app: all routes, put together.

Outermost is the `Edge`; inside are the two write routes and Starlette's router with everything else.
"""

from importlib.metadata import version

from starlette.routing import Router

from gateway import openapi
from gateway.body import BodyBudget
from gateway.endpoint import Endpoint, to_route
from gateway.metrics import Exposition
from gateway.middleware import Edge
from gateway.query_gate import QueryGate
from gateway.routes import (
    batch,
    destinations,
    documentation,
    exports,
    health,
    keys,
    ledger,
    metric_definitions,
    patterns,
    projects,
    query,
    read_events,
    read_metrics,
    retention,
    write_events,
)
from gateway.services import Services

METRICS_WAIT_S = 0.5
"""A page that opens asks for its dozen charts at once: what finds no slot waits so long for one."""

QUERY_ALLOWANCE_S = 10.0
"""An SQL query keeps its own deadlines; the request's body is read before."""


def create_app(services: Services) -> Edge:
    """The app of one worker. It starts nothing: services are opened and closed by the caller."""
    settings = services.settings
    budget = BodyBudget(settings.max_inflight_bytes)
    gate = QueryGate(max_concurrent=settings.max_concurrent_queries, deadline_s=settings.query_deadline_s)
    metrics_gate = QueryGate(
        max_concurrent=settings.max_concurrent_queries,
        deadline_s=settings.query_deadline_s,
        max_waiting=2 * settings.max_concurrent_queries,
        longest_wait_s=METRICS_WAIT_S,
    )
    sql = services.sql.settings
    # The service has places of its own.
    sql_gate = QueryGate(
        max_concurrent=settings.max_connections, deadline_s=sql.queue_wait_s + sql.deadline_s + QUERY_ALLOWANCE_S
    )

    def gate_of(endpoint: Endpoint) -> QueryGate:
        if endpoint in query.ENDPOINTS:
            return sql_gate
        return metrics_gate if endpoint in read_metrics.ENDPOINTS else gate

    contract = documentation.OpenApi()
    routed = routed_endpoints(services, contract)
    operations = [*write_events.OPERATIONS, *routed]
    contract.publish(openapi.document(operations, version=version("analytics-actors")))
    writes = write_events.WriteRoutes(services, budget)
    routes = [to_route(endpoint, services, gate_of(endpoint), budget) for endpoint in routed]
    return Edge(
        {"/v1/events": writes.single, "/v1/events/batch": writes.batch},
        {"/v1/events": writes.begin_single},
        # `Edge` takes a slash at the end away: to send a client to the path with one would send it round for ever.
        Router(routes, redirect_slashes=False),
        operations,
        services.metrics,
        query_origins=settings.query_origins,
    )


def routed_endpoints(services: Services, contract: documentation.OpenApi) -> list[Endpoint]:
    exposition = Exposition(services.metrics, services.status.snapshot)
    return [
        *read_events.ENDPOINTS,
        *read_metrics.ENDPOINTS,
        *query.ENDPOINTS,
        *exports.ENDPOINTS,
        *destinations.ENDPOINTS,
        *metric_definitions.ENDPOINTS,
        *patterns.ENDPOINTS,
        *ledger.ENDPOINTS,
        *projects.ENDPOINTS,
        *retention.ENDPOINTS,
        *batch.ENDPOINTS,
        *keys.ENDPOINTS,
        *health.endpoints(exposition, services.status),
        *documentation.endpoints(contract),
    ]
