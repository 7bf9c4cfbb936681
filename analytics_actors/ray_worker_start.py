"""Imported by every Ray worker, in its main thread, before it works: see `RayNode`, and ray_cluster.yaml."""

from analytics_actors.resting import allow_rest

allow_rest()
