"""sensorlab: a Ray-based experimentation platform for perception research."""

__version__ = "0.1.0"
