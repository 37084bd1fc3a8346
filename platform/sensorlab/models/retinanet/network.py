"""RetinaNet (Lin et al. 2017, arXiv 1708.02002) on a residual network with a feature pyramid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorlab.errors import UserError
from sensorlab.models.backbones.resnet import ResNet
from sensorlab.models.necks.fpn import FeaturePyramid
from sensorlab.models.retinanet.anchors import AnchorGrid
from sensorlab.models.retinanet.head import RetinaHead

# Of ImageNet, RGB in [0, 1]: what the backbone's published weights were trained with.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class RetinaNet(nn.Module):
    """RetinaNet detector. Names of the state dict and their order are mmdetection's.

    Args:
        depth: of the ResNet: 18, 34, 50 or 101.
        num_classes: C >= 1.
        frozen_stages: of the backbone: 0 the stem, 1 (mmdetection) also the first stage; None trains everything.
        norm_eval: the backbone's norms keep their statistics (see :class:`~sensorlab.models.backbones.resnet.ResNet`).
        anchors: shapes and places; ``AnchorGrid(legacy=True)`` for networks of mmdet 1.x.

    Raises:
        UserError: unknown depth or stage, no classes.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self,
        depth: int = 50,
        num_classes: int = 80,
        *,
        frozen_stages: int | None = 1,
        norm_eval: bool = True,
        anchors: AnchorGrid | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"RetinaNet needs at least one class, found num_classes {num_classes}")
        self.num_classes = num_classes
        self.anchors = anchors or AnchorGrid()
        # C3, C4, C5; the pyramid starts at stride 8.
        self.backbone = ResNet(depth, (2, 3, 4), frozen_stages=frozen_stages, norm_eval=norm_eval)
        self.neck = FeaturePyramid(self.backbone.out_channels, num_levels=len(self.anchors.strides))
        self.bbox_head = RetinaHead(num_classes, self.anchors.per_cell)
        # Constants: not part of the weights.
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN)[:, None, None], persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD)[:, None, None], persistent=False)
        self.train()  # what is frozen is in evaluation mode from the start

    def forward(self, images: Tensor) -> list[Tensor]:
        """Raw predictions, before any sigmoid.

        Args:
            images: (B, 3, H, W) float RGB in [0, 1], of any size; padding lies right and below.

        Returns:
            Per level, finest first: (B, ceil(H / stride), ceil(W / stride), A, 4 + C): dx, dy, dw, dh relative to the
            anchor, then the logits of the classes.
        """
        features = self.backbone((images - self.image_mean) / self.image_std)  # C3, C4, C5
        raw: list[Tensor] = self.bbox_head(self.neck(features))
        return raw
