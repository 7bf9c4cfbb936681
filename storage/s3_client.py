"""The client of S3: deadlines, retries, how the server is found. Credentials come from boto3's own chain, or from a
profile of its configuration."""

from typing import Any

import boto3
from botocore.config import Config
from botocore.loaders import create_loader
from botocore.session import Session

from config.settings import LakeSettings
from storage.errors import Misconfigured

THREADS = 8
"""Requests at once. A request waits for the network most of its time; more would only share the same line."""
TRIES = 3

_MODELS = create_loader()
"""What S3 understands, a megabyte of JSON that is read once a process: of the 140 ms of CPU that a client costs 120.
Each destination has one."""


def connect(settings: LakeSettings) -> Any:
    """A client, which nothing was asked with yet. It may look for credentials in the network: not for the event loop.
    Raises `Misconfigured` and errors of botocore."""
    config = Config(
        connect_timeout=settings.request_timeout_s,
        read_timeout=settings.request_timeout_s,
        retries={"mode": "standard", "total_max_attempts": TRIES},
        max_pool_connections=THREADS,
        s3={"addressing_style": _addressing(settings)},
    )
    try:
        # Of its own: a session is not made for threads.
        session = Session()
        session.register_component("data_loader", _MODELS)
        return boto3.session.Session(botocore_session=session, profile_name=settings.profile or None).client(
            "s3", region_name=settings.region, endpoint_url=settings.endpoint_url or None, config=config
        )
    except ValueError as error:
        raise Misconfigured(f"lake.endpoint_url = {settings.endpoint_url!r}: {error}") from error


def _addressing(settings: LakeSettings) -> str:
    if settings.path_style:
        return "path"
    # "auto" would be path style with any server but Amazon's, and is right for Amazon's: names with dots.
    return "virtual" if settings.endpoint_url else "auto"
