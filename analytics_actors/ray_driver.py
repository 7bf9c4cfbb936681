"""Joining a Ray cluster as a driver."""

import logging

import ray

from config.settings import Settings


def join(settings: Settings) -> None:
    """Join the cluster of the settings as a driver."""
    ray.init(
        address=settings.actors.ray_address,
        namespace=settings.actors.namespace,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
