"""Where webhooks may go, how they are signed, and when they are tried again. Deliveries over a socket:
tests/contract/test_webhook_delivery.py."""

from base64 import b64decode
from ipaddress import ip_address

import msgspec
import pytest
from yarl import URL

from analytics_actors.webhook import ATTEMPTS, BACKOFF_S, Webhooks, body_of, secret_text, signature_headers
from analytics_actors.webhook_hosts import Refused, WebhookHosts
from storage.memory_patterns import MemoryPatterns
from storage.pattern_store import Found
from tests.unit.test_app_patterns import detection

ALLOWED = [
    "hooks.example.com",
    "*.public.example",
    "127.0.0.1",
    "localhost:9000",
    "[::1]:80",
    "10.0.0.5",
    "169.254.1.1",
]


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com/x?y",
        "http://HOOKS.example.com.:8443",
        "https://a.public.example",
        "https://a.b.public.example",
        "http://127.0.0.1:5000/",
        "http://localhost:9000/",
        "http://[::1]/",
        "http://10.0.0.5",
        "http://169.254.1.1",
    ],
)
def test_hosts_on_the_list_are_allowed(url: str) -> None:
    WebhookHosts(ALLOWED).check(URL(url))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://evil-hooks.example.com",
        "https://hooks.example.com.evil.com",
        "https://hooks.example.com@evil.com/",
        "https://evil.com#hooks.example.com",
        "https://public.example",
        "http://localhost:9001/",
        "http://localhost/",
        "http://2130706433/",
        "http://0x7f.0.0.1/",
        "http://127.1/",
        "http://127.0.0.2/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::1]:81/",
        "ftp://hooks.example.com",
        "//hooks.example.com",
        "/path",
        "http://0.0.0.0/",
    ],
)
def test_all_others_are_refused(url: str) -> None:
    with pytest.raises(Refused):
        WebhookHosts(ALLOWED).check(URL(url))


def test_nothing_is_allowed_by_default_and_wildcards_name_no_addresses() -> None:
    with pytest.raises(Refused):
        WebhookHosts([]).check(URL("https://hooks.example.com"))
    with pytest.raises(Refused):
        WebhookHosts(["*.0.0.1"]).check(URL("http://127.0.0.1"))


PRIVATE = ["127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "100.64.0.1", "::1", "fd00::1", "::ffff:10.0.0.1"]
NEVER = ["169.254.169.254", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:169.254.169.254"]


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_addresses_are_for_all(address: str) -> None:
    WebhookHosts(ALLOWED).check_address("a.public.example", 443, ip_address(address))


@pytest.mark.parametrize("address", [*PRIVATE, "64:ff9b::7f00:1", "2002:7f00:1::"])
def test_private_addresses_are_for_hosts_that_are_named(address: str) -> None:
    hosts = WebhookHosts(ALLOWED)
    hosts.check_address("hooks.example.com", 443, ip_address(address))
    with pytest.raises(Refused, match="not public"):
        hosts.check_address("a.public.example", 443, ip_address(address))
    with pytest.raises(Refused):
        hosts.check_address("localhost", 9001, ip_address(address))


@pytest.mark.parametrize("address", [*NEVER, "64:ff9b::a9fe:a9fe"])
def test_no_name_leads_to_where_clouds_keep_their_credentials(address: str) -> None:
    with pytest.raises(Refused):
        WebhookHosts(ALLOWED).check_address("hooks.example.com", 443, ip_address(address))


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """The example of their specification's libraries."""
    secret = b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signature_headers(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert secret_text(secret) == "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_body_says_what_was_found() -> None:
    body = msgspec.json.decode(body_of(detection(0)))
    assert (body["type"], body["timestamp"]) == ("pattern.detected", "2026-11-20T12:02:00Z")
    assert body["data"]["id"] == detection(0).id
    assert (body["data"]["kind"], body["data"]["value"]) == ("spike", 250)


async def test_a_host_that_is_not_allowed_is_final() -> None:
    store = MemoryPatterns()
    await store.save([], [Found(detection(0), "https://evil.com/")])
    webhooks = Webhooks(store, WebhookHosts(["hooks.example.com"]), deadline_s=1)
    assert await webhooks.deliver_due() == 1
    [stored] = (await store.list_patterns("shop")).patterns
    assert stored.delivery == "failed"
    assert "webhook_hosts" in (stored.last_error or "")


async def test_attempts_are_further_and_further_apart_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    store = MemoryPatterns(clock=lambda: now)
    await store.save([], [Found(detection(0), "https://hooks.example.com/")])
    webhooks = Webhooks(store, WebhookHosts(["hooks.example.com"]), deadline_s=1, clock=lambda: now, rand=lambda: 0.5)

    async def fail(*_: object) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(webhooks, "_post", fail)
    for wait_s in BACKOFF_S:
        assert await webhooks.deliver_due() == 1
        now += wait_s - 1
        assert await webhooks.deliver_due() == 0
        now += 1
    assert await webhooks.deliver_due() == 1
    [stored] = (await store.list_patterns("shop")).patterns
    assert (stored.delivery, stored.attempts, stored.last_error) == ("failed", ATTEMPTS, "connection refused")
    now += 1e9
    assert await webhooks.deliver_due() == 0
    assert webhooks.observe() == {"delivered": 0, "retried": ATTEMPTS - 1, "given_up": 1, "trouble": ""}
