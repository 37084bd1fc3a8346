"""Multi-scale input: after resizing, a point in space still projects to the same content of the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bev_samples import HEADINGS, HEIGHT, INTRINSICS, WIDTH, make_sample, small_task

from sensorlab.data.random_streams import SampleRandom
from sensorlab.engine.multi_scale import MultiScaleConfig, rescale
from sensorlab.errors import UserError
from sensorlab.geometry.cameras import points_in_image, project_points, unproject_pixels
from sensorlab.tasks.bev_segmentation.resizing import resize_views

SIZES = [(32, 48), (48, 80), (64, 96), (96, 160), (16, 160)]


def _batch(task, training=False, count=2, pictures=None):
    samples = [make_sample(f"s{i}", seed=i, pictures=pictures) for i in range(count)]
    items = [task.transform(sample, SampleRandom(0, 0, sample.token), training) for sample in samples]
    batch = {name: torch.from_numpy(value) for name, value in task.collate(items).items()}
    return batch | {"index": torch.arange(count), "is_filler": torch.zeros(count, dtype=torch.bool)}


def _ramp(height, width):
    """(1, 1, H, W, 3) uint8: the first channel is linear in u, the second in v; border values reach to the border."""
    u = (np.arange(width) + 0.5) / width * 240
    v = (np.arange(height) + 0.5) / height * 240
    image = np.zeros((height, width, 3))
    image[..., 0], image[..., 1] = u, v[:, None]
    return torch.from_numpy(image.round().astype(np.uint8))[None, None]


@pytest.mark.parametrize("size", SIZES)
def test_a_projected_point_hits_the_same_content(size):
    """On a ramp over the image, content tells the place: read it at the projections before and after."""
    images = _ramp(192, 320)
    intrinsics = torch.from_numpy(INTRINSICS)[None, None]
    generator = np.random.default_rng(1)
    # Away from the border, where half a pixel of any size has no neighbour to interpolate with.
    pixels = generator.uniform((20, 14), (299, 177), (200, 2))
    points = torch.from_numpy(unproject_pixels(INTRINSICS, pixels, generator.uniform(2, 40, 200)))
    resized, new_intrinsics = resize_views(images, intrinsics, size, "exact")
    assert resized.shape == (1, 1, *size, 3)
    assert resized.dtype == torch.uint8

    def content(picture, matrix):
        where, depth = project_points(matrix[0, 0], points)
        height, width = picture.shape[2:4]
        assert bool(points_in_image(where, depth, (height, width)).all())
        grid = (where + 0.5) / torch.tensor([width, height]) * 2 - 1
        plane = picture[0, 0].permute(2, 0, 1)[None].double()
        return F.grid_sample(plane, grid[None, None], mode="bilinear", align_corners=False)[0, :2, 0].T

    before, after = content(images, intrinsics), content(resized, new_intrinsics)
    # Both images are rounded to whole grey levels. Half a pixel of the small image would be 2.5 (u) or 7.5 (v) levels.
    assert float((before - after).abs().max()) < 1.1
    # ... and the wrong convention is seen: it moves content by (1 - scale) / 2 pixels of the new image.
    wrong = resize_views(images, intrinsics, size, "origin")[1]
    if size != (96, 160):
        assert float((before - content(resized, wrong)).abs().mean()) > 2 * float((before - after).abs().mean())


@pytest.mark.parametrize("legacy", [[], ["intrinsics"]])
def test_resizing_twice_is_resizing_once(legacy):
    """Intrinsics of a resized batch are those of a task that decodes at that size, in its own convention."""
    tree = {"legacy": legacy, "image": {"size": [48, 80]}}
    small, large = small_task(tree), small_task({**tree, "image": {"size": [96, 160]}})
    batch, wanted = _batch(small), _batch(large)
    resized = small.resize(batch, (96, 160))
    torch.testing.assert_close(resized["intrinsics"], wanted["intrinsics"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(large.resize(wanted, (48, 80))["intrinsics"], batch["intrinsics"], rtol=1e-6, atol=1e-5)


def test_pixels_are_those_of_a_decode_at_that_size():
    """Shrinking averages as decoding does: within a grey level of what Pillow makes of the same smooth picture."""
    picture = _ramp(HEIGHT, WIDTH)[0, 0].numpy()
    pictures = dict.fromkeys(HEADINGS, picture)
    tree = {"image": {"interpolation": "bilinear"}}
    large, small = small_task(tree | {"image": {"size": [96, 160], "interpolation": "bilinear"}}), small_task(tree)
    shrunk = large.resize(_batch(large, pictures=pictures), (48, 80))["images"]
    decoded = _batch(small, pictures=pictures)["images"]
    # Not at the border: what a filter does with its missing neighbours differs between one pass and two.
    difference = (shrunk.int() - decoded.int()).abs()[:, :, 2:-2, 2:-2]
    assert int(difference.max()) <= 2


def test_only_images_and_intrinsics_change():
    task = small_task({"radar": {"input": "occupancy"}})
    batch = _batch(task, training=True)
    before = {name: value.clone() for name, value in batch.items()}
    assert task.image_size(batch) == (48, 80)
    resized = task.resize(batch, (64, 96))
    assert task.image_size(resized) == (64, 96)
    assert list(resized) == list(batch)
    for name, value in before.items():
        torch.testing.assert_close(batch[name], value, equal_nan=True)  # the batch itself is left as it was
        assert (resized[name] is batch[name]) == (name not in {"images", "intrinsics"})
    assert resized["images"].is_contiguous()
    same = task.resize(batch, (48, 80))
    assert torch.equal(same["images"], batch["images"])
    assert torch.equal(same["intrinsics"], batch["intrinsics"])


def test_a_crop_that_was_cut_before_is_resized_with_it():
    """Training crops are in the intrinsics already: rays through the corners of the picture stay the same rays."""
    task = small_task()
    batch = _batch(task, training=True)
    resized = task.resize(batch, (96, 112))

    def border_rays(arrays):
        height, width = task.image_size(arrays)
        corners = torch.tensor([[-0.5, -0.5], [width - 0.5, -0.5], [-0.5, height - 0.5], [width - 0.5, height - 0.5]])
        pixels = corners.expand(*arrays["intrinsics"].shape[:2], 4, 2).double()
        return unproject_pixels(arrays["intrinsics"].double(), pixels, torch.ones(pixels.shape[:-1]).double())

    torch.testing.assert_close(border_rays(resized), border_rays(batch), rtol=1e-5, atol=1e-6)


def test_the_network_sees_the_same_world_at_another_size():
    """Voxels that the cameras see stay the same, mirrored or not, and the lift finds the content at its place."""
    task = small_task()
    torch.manual_seed(0)
    model = task.build_model().eval()
    batch = _batch(task, training=True)
    assert batch["flip_image"].any()
    assert batch["flip_bev"].any()

    def lifted(arrays):
        """The world as a picture: an encoder that pools the image to its features, colours instead of channels."""
        images = arrays["images"].permute(0, 1, 4, 2, 3).float()
        features = F.avg_pool2d(images.flatten(0, 1), 8).unflatten(0, images.shape[:2])
        return model._lift(
            features, arrays["intrinsics"], arrays["ref_from_camera"], None, task.image_size(arrays)
        )  # (B, 3, Z, Y, X)

    batch["images"] = _ramp(48, 80).expand_as(batch["images"]).contiguous()
    large = task.resize(batch, (96, 160))
    volume, volume_large = lifted(batch), lifted(large)
    seen, seen_large = volume.abs().sum(1) > 0, volume_large.abs().sum(1) > 0
    assert float((seen == seen_large).float().mean()) > 0.99  # a voxel at the border of an image may round over it
    both = (seen & seen_large)[:, None].expand_as(volume)
    # A ramp of 240 levels over 10 x 6 feature cells: a cell is 24 or 40 levels.
    difference = (volume - volume_large)[both].abs()
    assert float(difference.median()) < 1.0
    with torch.no_grad():
        outputs = task.forward(model, large)
    assert outputs["seg"].shape == (2, 1, 40, 40)
    assert all(bool(torch.isfinite(value).all()) for value in outputs.values())


def test_a_training_step_at_every_size():
    task = small_task()
    model = task.build_model()
    batch = _batch(task, training=True)
    config, sizes = MultiScaleConfig(stride=16), set()
    for number in range(4):
        resized = rescale(task, batch, config, 0, 0, number)
        terms, _ = task.losses(model, task.forward(model, resized), resized)
        sum(terms.values()).backward()
        sizes.add(task.image_size(resized))
    assert len(sizes) > 1
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_a_size_that_the_network_cannot_take_is_explained():
    task = small_task()
    with pytest.raises(UserError, match=r"images of 40 x 64 .* multiples of 16; make train.multi_scale.stride"):
        task.resize(_batch(task), (40, 64))
