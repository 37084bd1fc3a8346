"""Simple-BEV: bird's-eye-view segmentation from cameras, radar and lidar."""

from sensorlab.models.simple_bev.encoders import ENCODERS
from sensorlab.models.simple_bev.network import RadarInput, SimpleBEV

__all__ = ["ENCODERS", "RadarInput", "SimpleBEV"]
