"""Image encoders of Simple-BEV: a truncated backbone and a neck that gives features at stride 8.

Every encoder maps (N, 3, H, W) normalised images, with H and W multiples of 16, to (N, latent_dim, H/8, W/8).
Parameter names and their order are those of the published checkpoints, which nest torchvision's ResNet under
``backbone.0`` (conv1), ``backbone.1`` (bn1), ``backbone.4`` (layer1) and ``backbone.5`` (layer2).
"""

from __future__ import annotations

from torch import Tensor, nn

from sensorlab.errors import UserError
from sensorlab.models.backbones.efficientnet import EfficientNet
from sensorlab.models.backbones.resnet import ResNet
from sensorlab.models.necks.upsampling import UpsamplingConcat

STRIDE = 8  # image pixels per feature cell

# Name: published width of the neck. res18 is not published; its neck is narrow to suit laptops.
ENCODERS = {"res101": 512, "res50": 512, "effb4": 128, "effb0": 128, "res18": 128}

# Where the weights of an image classifier belong in the network: (pattern, replacement) pairs for
# ``load_weights(model, path, rename=...)``. Layers that were cut off (layer4, fc, later blocks) stay unexpected.
RESNET_RENAME = (
    (r"^conv1\.", "encoder.backbone.0."),
    (r"^bn1\.", "encoder.backbone.1."),
    (r"^layer1\.", "encoder.backbone.4."),
    (r"^layer2\.", "encoder.backbone.5."),
    (r"^layer3\.", "encoder.layer3."),
)
EFFICIENTNET_RENAME = ((r"^_(conv_stem|bn0|blocks)\.", r"encoder.backbone._\1."),)


# variant: (last block of stride 8, last block kept: the end of stride 16)
EFFICIENTNET_BLOCKS = {"b0": (4, 10), "b4": (9, 21)}


class ResNetEncoder(nn.Module):
    """ResNet up to stage 3 (stride 16), joined with stage 2 at stride 8."""

    pretrained_rename = RESNET_RENAME

    def __init__(self, depth: int, latent_dim: int, neck_width: int) -> None:
        super().__init__()
        trunk = ResNet(depth, out_stages=(2, 3))
        fine, coarse = trunk.out_channels
        self.backbone = nn.Sequential(
            trunk.conv1,
            trunk.bn1,
            trunk.relu,
            trunk.maxpool,
            trunk.get_submodule("layer1"),
            trunk.get_submodule("layer2"),
        )
        self.layer3 = trunk.get_submodule("layer3")
        self.depth_layer = nn.Conv2d(neck_width, latent_dim, kernel_size=1)
        self.upsampling_layer = UpsamplingConcat(fine + coarse, neck_width)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, latent_dim, H/8, W/8)."""
        fine = self.backbone(images)  # (N, C2, H/8, W/8)
        coarse = self.layer3(fine)  # (N, C3, H/16, W/16)
        x = self.upsampling_layer(coarse, fine)  # (N, neck_width, H/8, W/8)
        return self.depth_layer(x)


class EfficientNetEncoder(nn.Module):
    """EfficientNet up to the end of stride 16, joined with the last block of stride 8."""

    pretrained_rename = EFFICIENTNET_RENAME

    def __init__(self, variant: str, latent_dim: int, neck_width: int) -> None:
        super().__init__()
        fine_block, coarse_block = EFFICIENTNET_BLOCKS[variant]
        self.backbone = EfficientNet(variant, num_blocks=coarse_block + 1, out_blocks=(fine_block, coarse_block))
        self.upsampling_layer = UpsamplingConcat(sum(self.backbone.out_channels), neck_width)
        self.depth_layer = nn.Conv2d(neck_width, latent_dim, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, latent_dim, H/8, W/8)."""
        fine, coarse = self.backbone(images)  # (N, C2, H/8, W/8), (N, C3, H/16, W/16)
        x = self.upsampling_layer(coarse, fine)  # (N, neck_width, H/8, W/8)
        return self.depth_layer(x)


def build_encoder(name: str, latent_dim: int, neck_width: int | None = None) -> ResNetEncoder | EfficientNetEncoder:
    """The encoder ``name`` of :data:`ENCODERS`.

    Args:
        name: "res101", "res50", "effb4", "effb0" or "res18".
        latent_dim: channels of the features that are lifted.
        neck_width: channels inside the neck; the published width by default.

    Raises:
        UserError: unknown name; the message lists those that exist.
    """
    if name not in ENCODERS:
        raise UserError(f"encoder {name!r} does not exist; encoders: {', '.join(ENCODERS)}")
    width = ENCODERS[name] if neck_width is None else neck_width
    if name.startswith("res"):
        return ResNetEncoder(int(name.removeprefix("res")), latent_dim, width)
    return EfficientNetEncoder(name.removeprefix("eff"), latent_dim, width)
