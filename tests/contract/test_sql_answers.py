"""SQL over the real data sets, a part in files and a part not: the answers are counted here from the sets themselves.

Without the sets beside the project there is nothing to ask about: the sample that it ships has none of these projects.
"""

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest

from tests.data_sets import SHARED, data_sets
from tests.sql_lake import Event, SqlLake, asking

SHOP = "rees46-multi-category-store"
WIKI = "en.wikipedia"
WEB = "semicomplete-presentations"
CLICKS = "1.usa.gov"
GITHUB = "KenanSulayman"
PROJECTS = (SHOP, WIKI, WEB, CLICKS, GITHUB)
OTHERS = 500
"""Events of other projects beside them, of each set."""

Rows = list[tuple[Any, ...]]

pytestmark = pytest.mark.skipif(not list(SHARED.glob("*.ndjson.gz")), reason="the data sets are not there")


@dataclass
class Sets:
    lake: SqlLake
    of: dict[str, list[Event]]
    """By project, each event once."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    found: dict[tuple[str, str], Event] = {}
    for data_set in data_sets():
        others = 0
        for line in gzip.decompress(data_set.path.read_bytes()).decode().splitlines():
            each = json.loads(line, parse_float=Decimal)
            others += each["projectId"] not in PROJECTS
            if each["projectId"] in PROJECTS or others <= OTHERS:
                found.setdefault((each["projectId"], each["eventId"]), json.loads(line))
    lake = SqlLake(tmp_path_factory.mktemp("sets"))
    events = list(found.values())
    lake.add_files(each for number, each in enumerate(events) if number % 7)
    lake.add_tail(each for number, each in enumerate(events) if not number % 7)
    return Sets(lake, {name: [each for each in events if each["projectId"] == name] for name in PROJECTS})


Answer = Callable[[list[Event]], Rows]


@dataclass
class Case:
    project: str
    sql: str
    answer: Answer
    """Counted in plain Python."""
    ordered: bool = False


def at(event: Event) -> datetime:
    return datetime.fromisoformat(event["timestamp"])


def hour(event: Event) -> str:
    return f"{event['timestamp'][:13]}:00:00Z"


def counted(values: Iterable[Any]) -> Rows:
    return list(Counter(values).items())


def price(event: Event) -> Decimal:
    return Decimal(str(event["properties"]["price"]))


def by_session(events: list[Event]) -> dict[str, list[Event]]:
    sessions: defaultdict[str, list[Event]] = defaultdict(list)
    for each in sorted(events, key=lambda e: (e["timestamp"], e["eventId"])):
        sessions[each["sessionId"]].append(each)
    return dict(sessions)


def revenue_by_day(events: list[Event]) -> Rows:
    days: defaultdict[str, Decimal] = defaultdict(Decimal)
    for each in events:
        if each["eventType"] == "purchase":
            days[each["timestamp"][:10]] += price(each)
    return [(day, float(total)) for day, total in days.items()]


def top_brands(events: list[Event]) -> Rows:
    brands = Counter(each["properties"]["brand"] for each in events if "brand" in each["properties"])
    return sorted(brands.items(), key=lambda pair: (-pair[1], pair[0]))[:10]


def funnel(events: list[Event]) -> Rows:
    """Sessions that viewed, then put into the cart, then bought."""
    steps = [0, 0, 0]
    for session in by_session(events).values():
        wanted = ["view", "cart", "purchase"]
        after: datetime | None = None
        for step, kind in enumerate(wanted):
            times = [at(e) for e in session if e["eventType"] == kind and (after is None or at(e) >= after)]
            if not times:
                break
            steps[step] += 1
            after = min(times)
    return [tuple(steps)]


def longest_sessions(events: list[Event]) -> Rows:
    found = [
        (name, int((at(session[-1]) - at(session[0])).total_seconds()), len(session))
        for name, session in by_session(events).items()
    ]
    return sorted(found, key=lambda row: (-row[1], row[0]))[:5]


def next_kinds(events: list[Event]) -> Rows:
    kinds = Counter(
        (before["eventType"], after["eventType"])
        for session in by_session(events).values()
        for before, after in pairwise(session)
    )
    return [(*pair, number) for pair, number in kinds.items()]


def running_edits(events: list[Event]) -> Rows:
    total, rows = 0, []
    for name, number in sorted(Counter(map(hour, events)).items()):
        total += number
        rows.append((name, number, total))
    return rows


def busiest_user_by_hour(events: list[Event]) -> Rows:
    hours: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each in events:
        if each.get("userId"):
            hours[hour(each)][each["userId"]] += 1
    return [(name, *min(users.items(), key=lambda pair: (-pair[1], pair[0].encode()))) for name, users in hours.items()]


def returning_users(events: list[Event]) -> Rows:
    hours: defaultdict[str, set[str]] = defaultdict(set)
    for each in events:
        if each.get("userId"):
            hours[each["userId"]].add(hour(each))
    return [(sum(len(found) > 1 for found in hours.values()), len(hours))]


def median_delta(events: list[Event]) -> Rows:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for each in events:
        found[each["properties"]["namespace"]].append(each["properties"]["delta"])
    return [(name, sorted(values)[(len(values) - 1) // 2]) for name, values in found.items()]


def bytes_by_status(events: list[Event]) -> Rows:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for each in events:
        found[each["properties"]["status"]].append(each["properties"].get("bytes"))
    return [
        (status, len(sizes), sum(size for size in sizes if size is not None) or None) for status, sizes in found.items()
    ]


def sizes_of_pushes(events: list[Event]) -> Rows:
    pushes = [each["properties"]["payload"] for each in events if each["eventType"] == "PushEvent"]
    return [(len(pushes), sum(p["size"] for p in pushes), sum(p["distinct_size"] for p in pushes))]


def authors(events: list[Event]) -> Rows:
    return counted(
        commit["author"]["name"] for each in events for commit in each["properties"]["payload"].get("commits", [])
    )


def mean_latitude(events: list[Event]) -> Rows:
    places = [each["properties"]["ll"] for each in events if "ll" in each["properties"]]
    return [(len(places), round(sum(lat for lat, _ in places) / len(places), 6))]


def shares(events: list[Event]) -> Rows:
    kinds = Counter(each["eventType"] for each in events)
    return [(kind, round(100 * number / len(events), 3)) for kind, number in kinds.items()]


def window_of(events: list[Event], start: str, end: str) -> list[Event]:
    return [each for each in events if start <= each["timestamp"] < end]


def rolling(events: list[Event]) -> Rows:
    """Events of the last ten minutes, by minute."""
    minutes = Counter(at(each).replace(second=0, microsecond=0) for each in events)
    return [
        (minute.strftime("%Y-%m-%dT%H:%M:%SZ"), sum(minutes[minute - timedelta(minutes=back)] for back in range(10)))
        for minute in minutes
    ]


CASES = [
    Case(SHOP, "SELECT count(*) FROM events", lambda e: [(len(e),)]),
    Case(SHOP, "SELECT event_type, count(*) FROM events GROUP BY ALL", lambda e: counted(x["eventType"] for x in e)),
    Case(
        SHOP,
        "SELECT count(DISTINCT user_id), count(DISTINCT session_id), count(anonymous_id) FROM events",
        lambda e: [(len({x["userId"] for x in e}), len({x["sessionId"] for x in e}), 0)],
    ),
    Case(
        SHOP,
        "SELECT strftime(timestamp, '%Y-%m-%d'), sum((properties->>'price')::DECIMAL(18, 2)) FROM events "
        "WHERE event_type = 'purchase' GROUP BY 1",
        revenue_by_day,
    ),
    Case(
        SHOP,
        "SELECT properties['brand'] AS brand, count(*) FROM events WHERE brand IS NOT NULL "
        "GROUP BY brand ORDER BY 2 DESC, 1 LIMIT 10",
        top_brands,
        ordered=True,
    ),
    Case(
        SHOP,
        "SELECT max((properties->>'category_id')::BIGINT), min(properties_json->'category_id') FROM events",
        lambda e: [
            (
                max(x["properties"]["category_id"] for x in e),
                min((x["properties"]["category_id"] for x in e), key=str),
            )
        ],
    ),
    Case(
        SHOP,
        """WITH steps AS (
             SELECT session_id, min(timestamp) FILTER (event_type = 'view') AS viewed FROM events GROUP BY 1
           ), carts AS (
             SELECT s.session_id, viewed, min(e.timestamp) AS put FROM steps s
             JOIN events e ON e.session_id = s.session_id AND e.event_type = 'cart' AND e.timestamp >= s.viewed
             GROUP BY ALL
           ), bought AS (
             SELECT c.session_id FROM carts c
             JOIN events e ON e.session_id = c.session_id AND e.event_type = 'purchase' AND e.timestamp >= c.put
             GROUP BY 1
           )
           SELECT (SELECT count(viewed) FROM steps), (SELECT count(*) FROM carts), (SELECT count(*) FROM bought)""",
        funnel,
    ),
    Case(
        SHOP,
        "SELECT session_id, date_diff('second', min(timestamp), max(timestamp)) AS s, count(*) FROM events "
        "GROUP BY 1 ORDER BY s DESC, 1 LIMIT 5",
        longest_sessions,
        ordered=True,
    ),
    Case(
        SHOP,
        """SELECT event_type, following, count(*) FROM (
             SELECT event_type, lead(event_type) OVER visit AS following FROM events
             WINDOW visit AS (PARTITION BY session_id ORDER BY timestamp, event_id)
           ) WHERE following IS NOT NULL GROUP BY ALL""",
        next_kinds,
    ),
    Case(
        SHOP,
        "SELECT event_type, round(100.0 * count(*) / sum(count(*)) OVER (), 3) FROM events GROUP BY 1",
        shares,
    ),
    Case(
        SHOP,
        "SELECT count(*) FROM events WHERE timestamp BETWEEN '2019-11-01' AND '2019-11-01T00:02:00Z'",
        lambda e: [(sum("2019-11-01T00:00:00Z" <= x["timestamp"] <= "2019-11-01T00:02:00Z" for x in e),)],
    ),
    Case(
        SHOP,
        "SELECT a.user_id FROM events a SEMI JOIN (FROM events WHERE event_type = 'purchase') b USING (user_id) "
        "WHERE a.event_type = 'cart' GROUP BY 1",
        lambda e: [
            (user,)
            for user in {x["userId"] for x in e if x["eventType"] == "cart"}
            & {x["userId"] for x in e if x["eventType"] == "purchase"}
        ],
    ),
    Case(
        WIKI,
        "SELECT n, count(*) FROM (SELECT user_id, count(*) AS n FROM events WHERE user_id IS NOT NULL GROUP BY 1) "
        "GROUP BY 1",
        lambda e: counted(Counter(x["userId"] for x in e if x.get("userId")).values()),
    ),
    Case(
        WIKI,
        """SELECT h, n, sum(n) OVER (ORDER BY h)::BIGINT FROM (
             SELECT date_trunc('hour', timestamp) AS h, count(*) AS n FROM events GROUP BY 1) ORDER BY h""",
        running_edits,
        ordered=True,
    ),
    Case(
        WIKI,
        """SELECT h, user_id, n FROM (
             SELECT date_trunc('hour', timestamp) AS h, user_id, count(*) AS n FROM events
             WHERE user_id IS NOT NULL GROUP BY ALL)
           QUALIFY row_number() OVER (PARTITION BY h ORDER BY n DESC, user_id) = 1""",
        busiest_user_by_hour,
    ),
    Case(
        WIKI,
        """SELECT count(*) FILTER (hours > 1), count(*) FROM (
             SELECT count(DISTINCT date_trunc('hour', timestamp)) AS hours FROM events
             WHERE user_id IS NOT NULL GROUP BY user_id)""",
        returning_users,
    ),
    Case(
        WIKI,
        "SELECT properties->>'namespace', quantile_disc((properties->>'delta')::INT, 0.5) FROM events GROUP BY 1",
        median_delta,
    ),
    Case(
        WIKI,
        "SELECT sum((properties->>'added')::BIGINT), sum(properties_json.deleted::BIGINT) FROM events "
        "WHERE (properties->>'isRobot')::BOOLEAN",
        lambda e: [
            (
                sum(x["properties"]["added"] for x in e if x["properties"]["isRobot"]),
                sum(x["properties"]["deleted"] for x in e if x["properties"]["isRobot"]),
            )
        ],
    ),
    Case(
        WIKI,
        "SELECT properties['countryName'], count(*) FROM events WHERE context.ip IS NOT NULL GROUP BY 1",
        lambda e: counted(x["properties"]["countryName"] for x in e if (x.get("context") or {}).get("ip")),
    ),
    Case(
        WIKI,
        "SELECT event_id, timestamp, properties->>'page', properties FROM events ORDER BY timestamp, event_id LIMIT 20",
        lambda e: [
            (x["eventId"], at(x), x["properties"]["page"], x["properties"])
            for x in sorted(e, key=lambda x: (at(x), x["eventId"]))[:20]
        ],
        ordered=True,
    ),
    Case(
        WEB,
        "SELECT (properties->>'status')::INT, count(*), sum((properties->>'bytes')::BIGINT) FROM events GROUP BY 1",
        bytes_by_status,
    ),
    Case(
        WEB,
        "SELECT context_json->>'$.page.path' AS path, count(*) AS n FROM events "
        "WHERE timestamp >= TIMESTAMPTZ '2015-05-18 00:00:00+00' AND timestamp < '2015-05-19' GROUP BY 1 HAVING n > 3",
        lambda e: [
            pair
            for pair in counted(
                x["context"]["page"]["path"] for x in window_of(e, "2015-05-18T00:00:00Z", "2015-05-19T00:00:00Z")
            )
            if pair[1] > 3
        ],
    ),
    Case(
        WEB,
        "SELECT count(DISTINCT context.ip), count(DISTINCT (context.ip, context.userAgent)) FROM events",
        lambda e: [
            (
                len({x["context"]["ip"] for x in e}),
                len({(x["context"]["ip"], x["context"].get("userAgent")) for x in e}),
            )
        ],
    ),
    Case(
        CLICKS,
        "SELECT properties['c'], count(*) FROM events GROUP BY 1",
        lambda e: counted(x["properties"].get("c") for x in e),
    ),
    Case(
        CLICKS,
        "SELECT count(*), round(avg((properties_json->'$.ll[0]')::DOUBLE), 6) FROM events "
        "WHERE json_exists(properties_json, '$.ll')",
        mean_latitude,
    ),
    Case(
        CLICKS,
        """SELECT m, sum(n) OVER (ORDER BY m RANGE BETWEEN INTERVAL 9 MINUTE PRECEDING AND CURRENT ROW)::BIGINT FROM (
             SELECT time_bucket(INTERVAL 1 MINUTE, timestamp) AS m, count(*) AS n FROM events GROUP BY 1)""",
        rolling,
    ),
    Case(
        CLICKS,
        "SELECT list(DISTINCT properties['tz'] ORDER BY properties['tz']) FROM events WHERE properties['c'] = 'DE'",
        lambda e: [(sorted({x["properties"]["tz"] for x in e if x["properties"].get("c") == "DE"}),)],
    ),
    Case(
        CLICKS,
        "SELECT count(*) FROM events WHERE regexp_matches(context.userAgent, '(?i)mobile') AND received_at > timestamp",
        lambda e: [(sum("mobile" in x["context"]["userAgent"].lower() for x in e if "context" in x),)],
    ),
    Case(
        GITHUB,
        "SELECT count(*), sum((properties_json->>'$.payload.size')::INT), "
        "sum(properties_json.payload.distinct_size::INT) FROM events WHERE event_type = 'PushEvent'",
        sizes_of_pushes,
    ),
    Case(
        GITHUB,
        "SELECT c->>'$.author.name', count(*) FROM events, unnest((properties_json->'$.payload.commits[*]')) t(c) "
        "GROUP BY 1",
        authors,
    ),
    Case(
        GITHUB,
        "SELECT DISTINCT properties_json.repo.name::VARCHAR FROM events",
        lambda e: [(json.dumps(name),) for name in {x["properties"]["repo"]["name"] for x in e}],
    ),
]


def comparable(value: Any) -> Any:
    """Map values are texts; times are texts; decimals and doubles are numbers."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, dict):
        return {key: each if isinstance(each, str) or each is None else json.dumps(each) for key, each in value.items()}
    return value


@pytest.mark.parametrize("number", range(len(CASES)))
async def test_answers_are_those_counted_in_python(sets: Sets, number: int) -> None:
    case = CASES[number]
    expected = [tuple(map(comparable, row)) for row in case.answer(sets.of[case.project])]
    async with asking(sets.lake) as ask:
        answer = await ask.answer(case.project, case.sql)
        found = [tuple(row) for row in json.loads(answer.body)]
    assert expected
    if not case.ordered:
        expected, found = sorted(expected, key=repr), sorted(found, key=repr)
    assert found == expected


def test_there_are_enough() -> None:
    assert len(CASES) >= 25
