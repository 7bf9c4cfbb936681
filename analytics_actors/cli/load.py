"""`analytics-actors load`."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from analytics_actors.cli.failure import Failure
from analytics_actors.cli.load_keys import GivenKey, ProjectKeys
from analytics_actors.cli.load_requests import Requests, posting
from analytics_actors.cli.load_rows import BadRow, Batch, Batcher, read_rows, total_bytes
from analytics_actors.cli.load_sender import Outcome, Sender
from analytics_actors.cli.output import print_json
from analytics_actors.cli.server_options import connect, data_option, json_option, kept_connection


@dataclass(frozen=True)
class Load:
    """What is to be loaded, where to, and how. `key` is the admin key when projects are taken from the rows, or when
    import keys are to be made for the project `import_project`."""

    files: tuple[Path, ...]
    url: str
    key: str
    by_project: bool
    import_old: bool
    import_project: str = ""
    batch_rows: int = 500
    concurrency: int = 8
    compress: bool = False
    patience_s: float = 120.0
    quiet: bool = False


class Loaded(NamedTuple):
    """What happened, for the summary."""

    outcome: Outcome
    requests: int
    repeated: int
    created_projects: int
    elapsed_s: float


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)
@click.option("--by-project", is_flag=True, help="Take the project from each row; missing ones are created.")
@click.option(
    "--import/--no-import",
    "import_old",
    default=None,
    help="Take events of any age. Needs an import key, which is made when none is given. [default: with --by-project]",
)
@click.option(
    "--batch", "batch_rows", type=click.IntRange(1, 10_000), default=500, show_default=True, help="Events a request."
)
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests at once.")
@click.option("--gzip", "compress", is_flag=True, help="Compress requests: for a gateway behind a thin line.")
@click.option(
    "--patience", "patience_s", type=float, default=120.0, show_default=True, help="Seconds to wait for the gateway."
)
@data_option
@click.option("--url", envvar="AA_URL", help="URL of the gateway. [default: that of the data folder]")
@click.option("--key", envvar="AA_KEY", help="Key to send with; with --by-project the admin key. [default: kept ones]")
@json_option
def load(
    files: tuple[Path, ...],
    by_project: bool,
    import_old: bool | None,
    data: Path,
    url: str | None,
    key: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Post events from NDJSON files, plain or gzip, one JSON object a line. - is standard input.

    Loading again within the dedupe window (log.dedupe_window_s, a day by default) stores nothing twice: events
    are known by their eventId, and a row without one gets one from its file's name, line and content. What is
    loaded again later is stored again.

    \b
    Examples:
      analytics-actors load today.ndjson
      analytics-actors load archive/*.ndjson.gz --import
      analytics-actors load mixed.ndjson.gz --by-project
      zstdcat archive.ndjson.zst | analytics-actors load -
    """
    is_import = by_project if import_old is None else import_old
    makes_key = is_import and not by_project and key is None
    with connect(data, url, key, role="admin" if by_project or makes_key else "write") as api:
        project_id = kept_connection(data).project_id if makes_key else ""
        wanted = Load(files, api.url, api.key, by_project, is_import, project_id, quiet=as_json, **options)
    loaded = asyncio.run(run(wanted))
    report(loaded, as_json=as_json)
    if loaded.outcome.rows and loaded.outcome.rejected == loaded.outcome.rows:
        raise Failure("every event was rejected")


async def run(wanted: Load) -> Loaded:
    """Load all files. Raises `Failure` when the gateway stays away or refuses."""
    began_s = time.monotonic()
    outcome = Outcome()
    async with posting(wanted.url, connections=wanted.concurrency) as post:
        requests = Requests(post, patience_s=wanted.patience_s)
        made = ProjectKeys(requests, wanted.key, project_id=wanted.import_project)
        keys = made if wanted.by_project or wanted.import_project else GivenKey(wanted.key)
        sender = Sender(requests, keys, outcome, import_old=wanted.import_old, compress=wanted.compress)
        with _progress(quiet=wanted.quiet) as progress:
            await sender.run(_batches(wanted, outcome, progress), concurrency=wanted.concurrency)
    return Loaded(outcome, requests.made, requests.repeated, made.created_projects, time.monotonic() - began_s)


def _batches(wanted: Load, outcome: Outcome, progress: Progress) -> Iterator[Batch]:
    """The files' rows in batches; what cannot be sent is counted on the way."""
    task = progress.add_task("load", total=total_bytes(wanted.files), rows=0, rate=0.0)
    batcher = Batcher(batch_rows=wanted.batch_rows)
    began_s = time.monotonic()

    def shown(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            progress.update(task, rows=outcome.rows, rate=outcome.rows / (time.monotonic() - began_s))
            yield batch

    for row in read_rows(wanted.files, by_project=wanted.by_project, advance=lambda n: progress.advance(task, n)):
        if isinstance(row, BadRow):
            outcome.refuse_unread(row)
        else:
            yield from shown(batcher.add(row))
    yield from shown(batcher.flush())


def _progress(*, quiet: bool) -> Progress:
    columns = [
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rows]:>11,} events"),
        TextColumn("{task.fields[rate]:>9,.0f}/s"),
        TimeElapsedColumn(),
    ]
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


def report(loaded: Loaded, *, as_json: bool) -> None:
    """The summary: counts, rate, and the reasons of rejections with examples."""
    outcome = loaded.outcome
    if as_json:
        counts = {"accepted": outcome.accepted, "duplicate": outcome.duplicate, "rejected": outcome.rejected}
        requests = {"requests": loaded.requests, "repeatedRequests": loaded.repeated}
        facts = {"createdProjects": loaded.created_projects, "elapsedSeconds": round(loaded.elapsed_s, 3)}
        print_json({**counts, "acks": outcome.acks, "reasons": outcome.reasons, **requests, **facts})
        return
    click.echo(
        f"{outcome.rows:,} events in {loaded.elapsed_s:.1f} s ({outcome.rows / loaded.elapsed_s:,.0f}/s): "
        f"{outcome.accepted:,} accepted, {outcome.duplicate:,} duplicate, {outcome.rejected:,} rejected"
    )
    notes = {
        "projects created": loaded.created_projects,
        "requests made again": loaded.repeated,
        "events wait in the spool": outcome.acks["spooled"],
    }
    for what, count in notes.items():
        if count:
            click.echo(f"{count:,} {what}")
    for code, count in outcome.reasons.most_common():
        click.echo(f"  {code}: {count:,}, such as")
        for example in outcome.examples[code]:
            click.echo(f"    {example}")
