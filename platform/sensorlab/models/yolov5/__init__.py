"""YOLOv5: networks of the releases v1 to v7, target assignment, loss, decoding, anchors of a data set."""

from sensorlab.models.yolov5.network import SIZES, VARIANTS, YoloV5

__all__ = ["SIZES", "VARIANTS", "YoloV5"]
