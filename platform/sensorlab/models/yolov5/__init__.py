"""YOLOv5: networks of the releases v1 to v7, target assignment, loss, detections, anchors of a data set."""

from sensorlab.models.yolov5.anchors import COCO_ANCHORS
from sensorlab.models.yolov5.assign import count_positives
from sensorlab.models.yolov5.auto_anchor import check_anchors
from sensorlab.models.yolov5.decode import SelectionOptions, decode, select
from sensorlab.models.yolov5.losses import LossOptions, YoloLoss, updated_balance, yolo_loss
from sensorlab.models.yolov5.network import SIZES, VARIANTS, YoloV5

__all__ = [
    "COCO_ANCHORS",
    "SIZES",
    "VARIANTS",
    "LossOptions",
    "SelectionOptions",
    "YoloLoss",
    "YoloV5",
    "check_anchors",
    "count_positives",
    "decode",
    "select",
    "updated_balance",
    "yolo_loss",
]
