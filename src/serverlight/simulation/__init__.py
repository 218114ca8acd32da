"""Fleets of devices and servers, simulated by discrete events from what profiles say."""

from serverlight.simulation.arrivals import Arrivals
from serverlight.simulation.comparison import SystemRow, compare
from serverlight.simulation.figures import Figures, Latencies
from serverlight.simulation.fleet import Fleet, simulate
from serverlight.simulation.parts import Crossing, Group, ServerModel

__all__ = [
    "Arrivals",
    "Crossing",
    "Figures",
    "Fleet",
    "Group",
    "Latencies",
    "ServerModel",
    "SystemRow",
    "compare",
    "simulate",
]
