"""A detector that writes HDF5 the way facilities do, for trying out and for tests.

    geometry -> physics -> frames | replay -> encoding -> writers (nexus) -> run

`simulate` is the door; the layout of what it writes is in ``docs/reference/simulated-detector.md``.
"""

from orchestrator.simulator.geometry import DetectorGeometry, GeometryOverrides
from orchestrator.simulator.nexus import FINISHED, FRAMES, KEYS, WRITTEN_TIME
from orchestrator.simulator.physics import Calibrant
from orchestrator.simulator.progress import ProgressFile
from orchestrator.simulator.run import DEATH_EXIT_CODE, SimulationReport, open_frames, simulate
from orchestrator.simulator.settings import (
    Compression,
    Layout,
    Misbehaviour,
    PixelType,
    ReplaySettings,
    SimulationSettings,
    SyntheticFramesSettings,
)

__all__ = [
    "DEATH_EXIT_CODE",
    "FINISHED",
    "FRAMES",
    "KEYS",
    "WRITTEN_TIME",
    "Calibrant",
    "Compression",
    "DetectorGeometry",
    "GeometryOverrides",
    "Layout",
    "Misbehaviour",
    "PixelType",
    "ProgressFile",
    "ReplaySettings",
    "SimulationReport",
    "SimulationSettings",
    "SyntheticFramesSettings",
    "open_frames",
    "simulate",
]
