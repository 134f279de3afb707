"""polyarm: robot-manipulation policies trained, judged, mixed and run in one house."""

__version__ = "0.1.0"
