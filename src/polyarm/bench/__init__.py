"""`polyarm bench`: what is planned, trained, judged, timed and drawn, each in a module of its own."""

from polyarm.bench.draw import figure, table
from polyarm.bench.run import bench

__all__ = ["bench", "figure", "table"]
