"""BEV segmentation (Simple-BEV): cameras, radar and lidar to a map of the ground around the vehicle."""

from sensorlab.tasks.bev_segmentation.task import BEVSegmentation as Task

__all__ = ["Task"]
