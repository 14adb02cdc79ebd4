"""Runs workers as Ray actors, on the cluster at an address or on a local Ray that is started and stopped here."""

from arrowquant_dist.engine.ray.engine import RayEngine
from arrowquant_dist.engine.ray.pace import Patience

__all__ = ["Patience", "RayEngine"]
