"""Imported by every worker of the embedded Ray node, in its main thread, before it works: see `RayNode`."""

from analytics_actors.resting import allow_rest

allow_rest()
