"""What it takes to make one file of an hour's parts: `python -m load_tests.measure_lake_merge`.

Each way runs in a process of its own, whose largest resident size is told: `merge` is `storage.lake_merge`; `duckdb`
sorts the parts in DuckDB, with a memory limit and a folder to spill to, and writes the same file of what it gives out.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa

from load_tests.measure_lake_file import HOUR, made_events
from storage.lake_file import ROW_GROUP_ROWS, SCHEMA, SORTED_BY, FileSummary, LakeFileWriter, write_file
from storage.lake_manifest import OffsetRange
from storage.lake_merge import merge_files

RANGES = [OffsetRange(0, 0, 1 << 40)]
WAYS = ("nothing", "merge", "duckdb")


def make_parts(folder: Path, *, events: int, parts: int) -> None:
    made = made_events(events, projects=20)
    for number in range(parts):
        rows = made.take(pa.array(range(number, events, parts)))
        with (folder / f"part-{number:05d}.parquet").open("wb") as sink:
            write_file(rows, sink, hour=HOUR, plan=number, number=0, ranges=RANGES)


def by_duckdb(sources: list[Path], target: Path, *, memory_mb: int) -> FileSummary:
    with (
        duckdb.connect(config={"memory_limit": f"{memory_mb}MB", "threads": 1}) as connection,
        target.open("wb") as sink,
        LakeFileWriter(sink, hour=HOUR, plan=1, number=0, ranges=RANGES) as writer,
    ):
        connection.execute(f"SET temp_directory = '{target.parent / 'spill'}'")
        found = connection.execute(
            f"SELECT * FROM read_parquet(?, hive_partitioning = false) ORDER BY {', '.join(SORTED_BY)}",
            [[str(source) for source in sources]],
        )
        for batch in _batches(found):
            writer.write(pa.Table.from_batches([batch]).cast(SCHEMA))
        return writer.finish()


def _batches(found: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    yield from found.to_arrow_reader(ROW_GROUP_ROWS)


def run(way: str, folder: Path, *, memory_mb: int) -> None:
    sources = sorted(folder.glob("part-*.parquet"))
    target = folder / f"{way}.parquet"
    wall, cpu = time.perf_counter(), time.process_time()
    rows = size = 0
    if way == "merge":
        with target.open("wb") as sink:
            made = merge_files(sources, sink, hour=HOUR, plan=1, number=0, ranges=RANGES)
        rows, size = made.note.rows, made.bytes
    elif way == "duckdb":
        made = by_duckdb(sources, target, memory_mb=memory_mb)
        rows, size = made.note.rows, made.bytes
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    # ru_maxrss would be that of the process that started this one.
    [resident] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    resident_mb = int(resident.split()[1]) / 1024
    print(f"{way:8} {rows:>10,} rows {size / 1e6:6.0f} MB {wall_s:6.1f} s {cpu_s:6.1f} s CPU {resident_mb:6.0f} MB RSS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--parts", type=int, default=60)
    parser.add_argument("--memory-mb", type=int, default=512, help="limit of DuckDB")
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.way:
        run(options.way, options.folder, memory_mb=options.memory_mb)
        return
    with tempfile.TemporaryDirectory() as name:
        make_parts(Path(name), events=options.events, parts=options.parts)
        size = sum(path.stat().st_size for path in Path(name).glob("part-*"))
        print(f"{options.parts} parts of together {size / 1e6:.0f} MB")
        for way in WAYS:
            limits = ["--memory-mb", str(options.memory_mb)]
            command = [sys.executable, "-m", "load_tests.measure_lake_merge", "--folder", name, "--way", way]
            subprocess.run([*command, *limits], check=True)


if __name__ == "__main__":
    main()
