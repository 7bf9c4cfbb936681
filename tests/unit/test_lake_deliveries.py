"""Deliveries over stores in memory, in virtual time: whatever happens between, a destination gets its events once."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analytics_actors.lake.deliveries import Deliveries
from analytics_actors.lake.delivery import make_file
from analytics_actors.lake.places import backup_of
from config.settings import DestinationSettings
from storage.destinations import Delivery, Destination, Stretch, state_of
from storage.lake_file import read_summary
from storage.memory_destinations import MemoryDestinations
from storage.memory_objects import MemoryObjects
from storage.object_store import ObjectStore
from tests.seeds import seeds
from tests.unit import virtual_time
from tests.unit.aggregation import Slow, compute_here
from tests.unit.lake_shard import HOUR_S, PARTITIONS, LakeShard
from tests.unit.test_lake_keeper import KeptLake

Key: TypeAlias = tuple[str, int, int, str]
"""Project, partition, offset, event id."""

POLICY = DestinationSettings(interval_s=30, behind_s=500)
CRASH_POINTS = ("delivery begun", "delivery put", "delivery recorded", "delivery finished")
ACME = Destination("d-acme", "client", "acme", "client", "s3://acme/events", region="eu-west-1")
SHOP = Destination("d-p1", "project", "p1", "client", "s3://p1/events", region="eu-west-1")


class DeliveredLake(KeptLake):
    """A lake with a keeper and destinations. Projects are p0 to p4, of which p1 and p4 are acme's at first; p4 shares
    a partition with p3."""

    def __init__(self, shard: LakeShard, folder: Path) -> None:
        super().__init__(shard, folder / "keeper")
        self.deliveries_folder = folder / "deliveries"
        self.destinations = MemoryDestinations(shard.manifest)
        self.places: dict[str, MemoryObjects] = {}
        self.deliveries: list[Deliveries] = []
        self.clients: dict[str, list[tuple[int, str]]] = {}
        """By project from which offset on it is whose."""
        self.begun: dict[str, dict[int, int]] = {}
        """By destination and partition from which offset on it is to have events."""
        for number in range(5):
            project = f"p{number}"
            self.destinations.add_project(project, "acme" if project in ("p1", "p4") else None)
            self.clients[project] = [(0, self.destinations.client_of(project))]

    def place(self, destination: Destination) -> MemoryObjects:
        return self.places.setdefault(destination.destination_id, MemoryObjects(clock_s=self.shard.clock_s))

    async def _open(self, destination: Destination) -> ObjectStore:
        opened: ObjectStore = Slow(MemoryObjects(sharing=self.place(destination)), self.shard.chance)
        opened._target.is_away = self.place(destination).is_away  # type: ignore[attr-defined]
        return opened

    def start_deliveries(self, policy: DestinationSettings = POLICY) -> Deliveries:
        """A new incarnation; those before are not told."""
        made = Deliveries(
            Slow(self.destinations, self.shard.chance),
            Slow(self.shard.objects, self.shard.chance),
            self._open,
            policy=policy,
            compression="snappy",
            folder=self.deliveries_folder,
            clock_s=self.shard.clock_s,
            compute=compute_here,
            reached=self._reached,
        )
        self.deliveries.append(made)
        made.start()
        return made

    async def create(self, destination: Destination, *, beginning: bool = False) -> None:
        starts = {n: 0 if beginning else self.shard.manifest.checkpoint(n).next_offset for n in range(PARTITIONS)}
        self.begun[destination.destination_id] = starts
        await self.destinations.create(destination, since="beginning" if beginning else "now")

    async def set_client(self, project: str, client: str) -> None:
        await self.destinations.set_client(project, client)
        client_id, since = self.destinations.projects[project]
        self.clients[project].append((since, client_id))

    def restart_failed(self, *_: Any) -> None:
        super().restart_failed()
        if self.deliveries and self.deliveries[-1].failure is not None:
            self.start_deliveries()

    async def delivered(self) -> None:
        """Until every destination has all that is in the lake."""
        async with asyncio.timeout(20_000):
            while True:
                names = list(self.destinations.kept)
                found = [await self.destinations.status(name) for name in names]
                if all(not each.pending_files and not each.open_delivery for each in found):
                    return
                self.restart_failed()
                self.shard.restart_failed()
                await asyncio.sleep(5)

    def rows(self, destination: Destination) -> Iterator[dict[str, Any]]:
        for key, content in self.place(destination).objects.items():
            table = pq.read_table(pa.BufferReader(content))
            summary = read_summary(content)
            assert summary.note.rows == table.num_rows > 0
            assert summary.note.destination == destination.destination_id
            assert key.startswith("events/year=") and set(summary.note.projects) == set(
                table.column("project_id").to_pylist()
            )
            yield from table.to_pylist()

    def wanted(self, destination: Destination) -> Iterator[Key]:
        for row in self.shard.store.rows:
            project, partition, offset = row["project_id"], row["partition_id"], row["log_offset"]
            owner = [client for since, client in self.clients[project] if since <= offset][-1]
            is_theirs = {
                "all": True,
                "project": project == destination.owner_id,
                "client": owner == destination.owner_id,
            }
            if is_theirs[destination.owner] and offset >= self.begun[destination.destination_id][partition]:
                yield project, partition, offset, row["event_id"]

    def check_delivered(self) -> None:
        for kept in self.destinations.kept.values():
            found = Counter(
                (row["project_id"], row["log_partition"], row["log_offset"], row["event_id"])
                for row in self.rows(kept.destination)
            )
            assert found == Counter(self.wanted(kept.destination)), kept.destination.destination_id
            status, volumes = kept.status, self.destinations.counted
            for what, total in (("rows", status.rows), ("bytes", status.bytes)):
                mine = [
                    count
                    for key, count in volumes.items()
                    if (key[0], key[3]) == (kept.destination.destination_id, what)
                ]
                assert sum(mine) == total
            assert status.rows == found.total() and status.files == len(self.place(kept.destination).objects)


def in_lake(test: Callable[[DeliveredLake], Awaitable[None]], folder: Path, **options: Any) -> None:
    async def main() -> None:
        shard = LakeShard(**options)
        lake = DeliveredLake(shard, folder)
        await shard.start_batcher()
        shard.start_exporter()
        lake.start_keeper()
        lake.start_deliveries()
        try:
            await test(lake)
        finally:
            for deliveries in lake.deliveries:
                await deliveries.close()
            for keeper in lake.keepers:
                await keeper.close()
            await shard.close()
        # Not while they run: one of two that deliver the same may be at its next file.
        assert not list(lake.deliveries_folder.glob("*")), "something is left on the disk"

    virtual_time.run(main())


def test_a_client_gets_its_projects_events_and_no_others(tmp_path: Path) -> None:
    async def test(lake: DeliveredLake) -> None:
        await lake.create(ACME)
        await lake.create(SHOP)
        await lake.fill(10, hours=3)
        await lake.is_compact()
        await lake.delivered()
        lake.check_delivered()
        assert {row["project_id"] for row in lake.rows(ACME)} == {"p1", "p4"}
        assert {row["project_id"] for row in lake.rows(SHOP)} == {"p1"}
        volumes = await lake.destinations.volumes(client_id="acme")
        assert {(each.destination_id, each.project_id) for each in volumes} == {
            ("d-acme", "p1"),
            ("d-acme", "p4"),
            ("d-p1", "p1"),
        }
        assert sum(each.rows for each in volumes if each.destination_id == "d-acme") == len(list(lake.rows(ACME)))

    in_lake(test, tmp_path)


@pytest.mark.parametrize("beginning", [True, False])
def test_history_is_delivered_from_merged_files_when_it_is_wanted(tmp_path: Path, beginning: bool) -> None:
    async def test(lake: DeliveredLake) -> None:
        await lake.fill(10, hours=3)
        await lake.is_compact()
        await lake.create(ACME, beginning=beginning)
        await lake.fill(5, hours=3)
        await lake.delivered()
        lake.check_delivered()
        assert len(list(lake.rows(ACME))) == (36 if beginning else 12)

    in_lake(test, tmp_path)


def test_the_settings_backup_gets_everything_and_another_place_ends_it(tmp_path: Path) -> None:
    async def test(lake: DeliveredLake) -> None:
        policy = DestinationSettings(interval_s=30, backup_url="s3://backup/one")
        backup = backup_of(policy)
        assert backup is not None
        await lake.fill(5)
        await lake.deliveries.pop().close()
        lake.start_deliveries(policy)
        lake.begun[backup.destination_id] = dict.fromkeys(range(PARTITIONS), 0)
        await asyncio.sleep(1)
        await lake.fill(5)
        await lake.delivered()
        lake.check_delivered()
        assert len(list(lake.rows(backup))) == len(lake.shard.store.rows)
        await lake.deliveries.pop().close()
        # The same place: it goes on.
        lake.start_deliveries(DestinationSettings(interval_s=30, backup_url="s3://backup/one/"))
        await lake.fill(5)
        await lake.delivered()
        lake.check_delivered()
        assert [each.enabled for each in await lake.destinations.listed()] == [True]
        await lake.deliveries.pop().close()
        lake.start_deliveries(DestinationSettings(backup_url="s3://backup/two"))
        await asyncio.sleep(1)
        assert not (await lake.destinations.get(backup.destination_id)).enabled

    in_lake(test, tmp_path)


def test_a_backup_whose_place_is_taken_is_told_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    async def test(lake: DeliveredLake) -> None:
        taken = Destination("d-all", "all", "", "backup", "s3://backup/one")
        await lake.create(taken)
        await lake.create(ACME)
        await lake.deliveries.pop().close()
        deliveries = lake.start_deliveries(DestinationSettings(interval_s=30, backup_url="s3://backup/one"))
        await lake.fill(5)
        await lake.delivered()
        lake.check_delivered()
        assert list(lake.rows(ACME)) and "d-all" in deliveries.observe().trouble
        assert (deliveries.observe().destinations, deliveries.failure) == (2, None)
        await lake.destinations.remove("d-all")
        await asyncio.sleep(30)
        assert deliveries.observe().trouble == ""
        assert len(await lake.destinations.listed()) == 2

    in_lake(test, tmp_path)


def test_a_bucket_that_is_away_delays_itself_alone_and_is_behind_after_a_while(tmp_path: Path) -> None:
    async def test(lake: DeliveredLake) -> None:
        await lake.create(ACME)
        await lake.create(SHOP)
        lake.place(ACME).is_away = True
        states: list[str] = []
        for _ in range(10):
            await lake.fill(3)
            await asyncio.sleep(100)
            status = await lake.destinations.status(ACME.destination_id)
            states.append(state_of(ACME, status, now=lake.shard.now(), behind_s=POLICY.behind_s))
        assert states[0] == "failing" and states[-1] == "behind"
        assert lake.deliveries[-1].observe().failing == 1
        assert "away" in (await lake.destinations.status(ACME.destination_id)).last_error
        assert len(list(lake.rows(SHOP))) == 60
        lake.place(ACME).is_away = False
        await lake.is_compact()
        await lake.delivered()
        lake.check_delivered()
        status = await lake.destinations.status(ACME.destination_id)
        assert state_of(ACME, status, now=lake.shard.now(), behind_s=POLICY.behind_s) == "ok"
        assert lake.deliveries[-1].observe().trouble == ""

    in_lake(test, tmp_path)


def test_a_project_that_changes_hands_is_delivered_to_whom_it_was(tmp_path: Path) -> None:
    async def test(lake: DeliveredLake) -> None:
        other = Destination("d-other", "client", "other", "client", "s3://other/events", region="eu-west-1")
        await lake.create(ACME)
        await lake.create(other, beginning=True)
        lake.place(ACME).is_away = lake.place(other).is_away = True
        for client in ("other", "acme", "other"):
            await lake.fill(5)
            # They are in the lake, and none is delivered.
            await lake.set_client("p4", client)
        await lake.fill(5)
        lake.place(ACME).is_away = lake.place(other).is_away = False
        await lake.delivered()
        lake.check_delivered()
        assert Counter(row["project_id"] for row in lake.rows(ACME))["p4"] == 12
        assert Counter(row["project_id"] for row in lake.rows(other))["p4"] == 12

    in_lake(test, tmp_path)


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_delivery_that_was_cut_short_is_finished_as_it_was(tmp_path: Path, point: str) -> None:
    async def test(lake: DeliveredLake) -> None:
        await lake.create(ACME)
        lake.crash_at = point
        await lake.fill(5, hours=3)
        async with asyncio.timeout(100):
            while lake.deliveries[-1].failure is None:
                await asyncio.sleep(0.5)
        # What comes between is of the next delivery, and what was merged is read from elsewhere.
        await lake.fill(10, hours=3)
        await lake.is_compact()
        await lake.delivered()
        lake.check_delivered()

    in_lake(test, tmp_path)


def test_another_systems_object_under_a_name_is_told(tmp_path: Path) -> None:
    async def test(lake: DeliveredLake) -> None:
        await lake.create(ACME)
        await lake.fill(2, hours=1)
        await lake.delivered()
        [(key, content)] = lake.place(ACME).objects.items()
        stranger = Destination("d-x", "client", "acme", "client", "s3://x/y", region="eu-west-1")
        lake.place(stranger).objects[key.replace("000001-", "000002-")] = content
        await lake.create(stranger, beginning=True)
        await asyncio.sleep(60)
        status = await lake.destinations.status("d-x")
        assert "another system's object" in status.last_error and status.failing_since is not None
        lake.place(stranger).objects.clear()
        await lake.delivered()
        lake.check_delivered()

    in_lake(test, tmp_path)


def test_an_hour_of_very_many_files_is_read_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(lake: DeliveredLake) -> None:
        monkeypatch.setattr("analytics_actors.lake.delivery.MAX_FILES", 3)
        await lake.fill(20, hours=1)
        paths = []
        for number, kept in enumerate(lake.shard.manifest.live()):
            paths.append(tmp_path / f"source-{number}")
            paths[-1].write_bytes(lake.shard.objects.objects[kept.file.key])
        stretches = tuple(Stretch("", n, 0, 1000) for n in range(PARTITIONS))
        delivery = Delivery(7, "d", lake.shard.now(), stretches)
        hour = int(lake.shard.manifest.live()[0].file.hour.timestamp())
        in_turn = make_file(paths, tmp_path, delivery, hour, "snappy")
        monkeypatch.undo()
        at_once = make_file(paths, tmp_path, delivery, hour, "snappy")
        assert in_turn is not None and at_once is not None
        assert in_turn.note == at_once.note and in_turn.note.rows == 120

    in_lake(test, tmp_path)


@pytest.mark.parametrize("seed", seeds(5, 30))
def test_whatever_happens_each_event_is_delivered_once(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    async def test(lake: DeliveredLake) -> None:
        await lake.create(ACME)
        spare = [
            Destination("d-all", "all", "", "backup", "s3://all/events", region="eu-west-1"),
            Destination("d-late", "client", "acme", "client", "s3://late/events", region="eu-west-1"),
            SHOP,
        ]
        number = 0
        for _ in range(40):
            match chance.choice(
                ["send", "send", "send", "crash", "away", "zombie", "create", "client", "compact", "wait"]
            ):
                case "send":
                    number += 1
                    rows = [(f"{number}-{n}", chance.randrange(3) * HOUR_S) for n in range(chance.randrange(1, 6))]
                    await lake.shard.send(f"p{chance.randrange(5)}", rows)
                case "crash":
                    lake.crash_at = chance.choice([*CRASH_POINTS, "planned", "swapped"])
                case "away":
                    for place in [lake.shard.objects, *lake.places.values()]:
                        place.is_away = chance.random() < 0.3
                case "zombie":
                    lake.start_deliveries()
                case "create" if spare:
                    await lake.create(spare.pop(), beginning=chance.random() < 0.5 and len(spare) != 1)
                case "client":
                    await lake.shard.settle() if not lake.shard.objects.is_away else None
                    await lake.set_client(f"p{chance.randrange(5)}", chance.choice(["acme", "other"]))
                case "compact":
                    lake.shard.objects.is_away = False
                    await lake.shard.settle()
                    await lake.is_compact()
                case _:
                    await asyncio.sleep(chance.choice([1, 10, 100]))
            lake.restart_failed()
            lake.shard.restart_failed()
        for place in [lake.shard.objects, *lake.places.values()]:
            place.is_away = False
        lake.crash_at = None
        await lake.shard.settle()
        await asyncio.sleep(20)
        await lake.delivered()
        lake.check_delivered()

    in_lake(test, tmp_path, chance=chance)
