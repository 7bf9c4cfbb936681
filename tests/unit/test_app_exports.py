"""`/v1/exports`: pages of files, what is pending, volumes; and the file in an event's trace."""

from datetime import UTC, datetime, timedelta

import pytest

from storage.errors import Unavailable
from storage.event_store import Checkpoint
from storage.lake_manifest import LakeFile, OffsetRange
from storage.memory_manifest import Exported
from tests.unit.fake_services import NOW, System

HOUR = NOW - timedelta(hours=2)
PARTITION = 3
"""Of the trace's event in `FakeQueries`."""


def lake_of(files: int) -> System:
    """A file an hour from `HOUR` on, each of three events of the shop and one of another project."""
    system = System()
    manifest = system.manifest
    made = [
        LakeFile(
            key=f"events/part-{number}.parquet",
            hour=HOUR + timedelta(hours=number),
            rows=4,
            bytes=400,
            checksum="",
            id_digest=0,
            min_timestamp=HOUR + timedelta(hours=number),
            max_timestamp=HOUR + timedelta(hours=number, minutes=5),
            ranges=[OffsetRange(PARTITION, 0, 10)],
            projects={"shop": 3, "else": 1},
            tier="cold" if number == 0 else "hot",
        )
        for number in range(files)
    ]
    manifest._add(1, made)
    manifest._count(made)
    manifest.checkpoints[PARTITION] = Checkpoint(PARTITION, 1, 10)
    manifest.exports.append(Exported(OffsetRange(PARTITION, 0, 10), 1, NOW))
    return system


async def test_a_page_of_files() -> None:
    async with lake_of(3).client("read") as client:
        answer = (await client.get("/v1/exports?limit=2")).json()
        rest = (await client.get(f"/v1/exports?limit=2&cursor={answer['nextCursor']}")).json()
    assert answer["files"][0] == {
        "path": "events/part-0.parquet",
        "hour": "2026-11-20T10:00:00Z",
        "rows": 3,
        "bytes": 300,
        "firstTimestamp": "2026-11-20T10:00:00Z",
        "lastTimestamp": "2026-11-20T10:05:00Z",
        "tier": "cold",
        "createdAt": "2026-11-20T12:00:00Z",
    }
    totals = {"files": 3, "rows": 9, "bytes": 900, "coldFiles": 1, "coldBytes": 300}
    assert answer["totals"] == totals | {"firstHour": "2026-11-20T10:00:00Z", "lastHour": "2026-11-20T12:00:00Z"}
    assert answer["totals"] == rest["totals"]
    assert answer["pending"] == {"events": 0, "complete": True, "records": 0}
    assert [file["path"] for file in rest["files"]] == ["events/part-2.parquet"]
    assert "nextCursor" not in rest


async def test_a_time_range() -> None:
    query = "startTime=2026-11-20T11:00:00Z&endTime=2026-11-20T12:00:00Z"
    async with lake_of(3).client("read") as client:
        answer = (await client.get(f"/v1/exports?{query}")).json()
    assert [file["path"] for file in answer["files"]] == ["events/part-1.parquet"]
    assert answer["totals"]["files"] == 1


@pytest.mark.parametrize(
    ("key", "query", "rows"),
    [
        ("read", "", 3),
        ("admin", "?projectId=shop", 3),
        ("system", "?projectId=else", 1),
        ("system", "", 4),
        ("system", "?projectId=nobody", 0),
    ],
)
async def test_whose_files(key: str, query: str, rows: int) -> None:
    system = lake_of(1)
    for project_id in ("else", "nobody"):
        system.registry.add(project_id)
    async with system.client(key) as client:
        assert (await client.get(f"/v1/exports{query}")).json()["totals"]["rows"] == rows
        volumes = (await client.get(f"/v1/exports/volumes{query}")).json()
    assert volumes["totals"]["rows"] == rows


@pytest.mark.parametrize("path", ["/v1/exports", "/v1/exports/volumes"])
async def test_others_are_refused(path: str) -> None:
    for key, query, code in (("write", "", "key_kind_not_allowed"), ("read", "?projectId=else", "project_mismatch")):
        async with System().client(key) as client:
            answer = await client.get(path + query)
        assert (answer.status_code, answer.json()["code"]) == (403, code)


@pytest.mark.parametrize(
    "query", ["?cursor=x", "?limit=0", "?startTime=yesterday", "/volumes?startDay=x", "/volumes?of=x", "?x=1"]
)
async def test_bad_parameters(query: str) -> None:
    async with System().client("read") as client:
        answer = await client.get(f"/v1/exports{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")


@pytest.mark.parametrize(
    ("query", "form"), [("?startTime=x", "2026-11-20T00:00:00Z"), ("/volumes?startDay=x", "2026-11-20")]
)
async def test_a_time_that_is_none_is_answered_with_the_form_of_one(query: str, form: str) -> None:
    async with System().client("read") as client:
        answer = await client.get(f"/v1/exports{query}")
    assert answer.json()["message"].endswith(f"send it as {form}.")


async def test_volumes() -> None:
    async with lake_of(2).client("read") as client:
        exported = (await client.get("/v1/exports/volumes?startDay=2026-11-20&endDay=2026-11-21")).json()
        held = (await client.get("/v1/exports/volumes?of=held")).json()
        later = (await client.get("/v1/exports/volumes?startDay=2026-11-21")).json()
    volume = {"clientId": "shop", "projectId": "shop", "day": "2026-11-20", "files": 2, "rows": 6, "bytes": 600}
    assert exported == {"of": "exported", "volumes": [volume], "totals": {"rows": 6, "bytes": 600}}
    assert held == exported | {"of": "held"}
    assert later["volumes"] == []


async def test_an_unreachable_manifest_is_503() -> None:
    system = System()
    system.queries.add("e1")

    async def away(*_: object, **__: object) -> None:
        raise Unavailable("PostgreSQL did not answer")

    system.manifest.store.checkpoints = away  # type: ignore[method-assign,assignment]
    async with system.client("read") as client:
        answer = await client.get("/v1/exports")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


async def test_a_trace_names_the_file_once_the_event_is_exported() -> None:
    for files, names_file in ((1, False), (3, True)):
        system = lake_of(files)
        system.queries.add("e1")
        async with system.client("read") as client:
            trace = (await client.get("/v1/events/e1/trace")).json()
        assert trace["state"] == "stored"
        assert ("file" in trace) == names_file
    assert (trace["file"], trace["rowGroup"]) == ("events/part-2.parquet", 0)
    assert datetime.fromisoformat(trace["exportedAt"]) == NOW.astimezone(UTC)
