"""HTTP without TLS, as all of it is in the tests. For each client, and each `httpx.get`, httpx reads the certificates
of all authorities, which is 30 ms of CPU: more than all else that a test does with an answer."""

from functools import partial

import httpx

web = httpx.Client(verify=False, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
"""For single requests, each on a connection of its own: gateways are killed here."""

AsyncWeb = partial(httpx.AsyncClient, verify=False, trust_env=False)
"""For many."""
