"""S3 servers of the tests, processes of their own on free ports of loopback.

moto keeps everything in memory, takes any credentials and checks `If-None-Match` and writes in one step, as Amazon
does. OpenStack Swift is a real server on disk: it checks credentials, and looks before it writes, without a lock.
Neither needs root, or anything outside of its folder.
"""

import os
import pwd
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config

from storage.embedded.process import free_port
from tests.plain_http import web

START_DEADLINE_S = 60.0


@dataclass
class ObjectServer:
    """One that runs: where, and with which credentials."""

    endpoint_url: str
    access_key: str
    secret_key: str
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """What makes a process find the credentials, and no others on this machine."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self) -> Any:
        """A client of the tests' own, to look at what is there and to change it."""
        return self._session.client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint_url,
            config=Config(s3={"addressing_style": "path"}),
        )

    @cached_property
    def _session(self) -> Any:
        """It reads what S3 understands from a megabyte of JSON: once, not for each client."""
        return boto3.session.Session(self.access_key, self.secret_key)

    def make_bucket(self) -> str:
        name = f"test-{uuid.uuid4().hex}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def download(self, bucket: str, folder: Path) -> None:
        """All objects of the bucket, under their keys."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for found in page.get("Contents", []):
                target = folder / found["Key"]
                target.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, found["Key"], str(target))
        client.close()

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def pause(self) -> None:
        """It goes silent: connections are taken, and nothing is answered."""
        for process in self.processes:
            process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)


def start_moto(folder: Path) -> ObjectServer:
    port = free_port()
    server = ObjectServer(f"http://127.0.0.1:{port}", "testing", "testing")
    _spawn(server, folder / "moto.log", ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])
    _wait_until_answers(server, f"{server.endpoint_url}/moto-api/", folder / "moto.log")
    return server


def start_swift(folder: Path) -> ObjectServer:
    """Account, container, object and proxy server over one device, which is a subfolder."""
    _check_attributes(folder)
    ports = {name: free_port() for name in ("account", "container", "object", "proxy")}
    (folder / "swift.conf").write_text(_SWIFT_CONF)
    (folder / "devices" / "d1").mkdir(parents=True)
    user = pwd.getpwuid(os.getuid()).pw_name
    head = f"[DEFAULT]\nbind_ip = 127.0.0.1\nworkers = 0\nuser = {user}\nswift_dir = {folder}\nlog_level = WARNING\n"
    _build_rings(folder, ports)
    for name, port in ports.items():
        conf = _PROXY_CONF if name == "proxy" else _STORAGE_CONF.format(name=name, folder=folder)
        (folder / f"{name}.conf").write_text(f"{head}bind_port = {port}\n{conf}")
    server = ObjectServer(f"http://127.0.0.1:{ports['proxy']}", "test:tester", "testing")
    for name in ports:
        _spawn(server, folder / f"{name}.log", [_script(f"swift-{name}-server"), str(folder / f"{name}.conf")])
    _wait_until_answers(server, f"{server.endpoint_url}/healthcheck", folder / "proxy.log")
    return server


_SWIFT_CONF = """
[swift-hash]
swift_hash_path_suffix = tests
swift_hash_path_prefix = tests
[storage-policy:0]
name = one
default = yes
"""
_STORAGE_CONF = """
devices = {folder}/devices
mount_check = false
disable_fallocate = true
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, *servers = sys.argv[1:]
for name, port in (each.split("=") for each in servers):
    ring = RingBuilder(4, 1, 0)
    place = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1.0}
    ring.add_dev(place | {"replication_ip": "127.0.0.1", "replication_port": int(port), "meta": ""})
    ring.rebalance()
    ring.get_ring().save(f"{folder}/{name}.ring.gz")
"""
_FILTERS = (
    "catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth copy slo dlo versioned_writes symlink"
)
_PROXY_CONF = f"""
[pipeline:main]
pipeline = {_FILTERS} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
""" + "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _FILTERS.split())
_PROXY_CONF = _PROXY_CONF.replace(
    "[filter:tempauth]\n", "[filter:tempauth]\nuser_test_tester = testing .admin\n"
).replace("[filter:s3api]\n", "[filter:s3api]\nlocation = us-east-1\n")


def _check_attributes(folder: Path) -> None:
    """Swift keeps what it knows of an object in extended attributes of its file."""
    try:
        os.setxattr(folder, "user.swift", b"")
    except OSError as error:
        raise RuntimeError(f"Swift needs a file system with user attributes: {folder}: {error}") from error


def _build_rings(folder: Path, ports: dict[str, int]) -> None:
    words = [str(folder), *(f"{name}={port}" for name, port in ports.items())]
    subprocess.run([sys.executable, "-c", _RINGS, *words], check=True, env=_quiet())


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _spawn(server: ObjectServer, log_path: Path, command: Sequence[str]) -> None:
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_quiet(),
        )
    server.processes.append(process)


def _quiet() -> dict[str, str]:
    return os.environ | {"PYTHONWARNINGS": "ignore"}


def _wait_until_answers(server: ObjectServer, url: str, log_path: Path) -> None:
    until_s = time.monotonic() + START_DEADLINE_S
    while not _answers(url):
        if time.monotonic() > until_s or any(process.poll() is not None for process in server.processes):
            server.stop()
            raise RuntimeError(f"an S3 server of the tests did not start:\n{log_path.read_text()[-4000:]}")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        return web.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
