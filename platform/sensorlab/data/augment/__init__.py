"""Transforms of images with 2D boxes, as pure functions without torch.

An image is (H, W, 3) uint8, RGB. Boxes are (N, 4) float64 in **continuous pixels**: left, top, right, bottom, where 0
is the border of the image and not the centre of its first pixel, so the whole image is (0, 0, W, H). Functions never
change what they are given; what they return may be a view, the input itself or read-only, so it has to be copied into
a batch and not wrapped. What is random is drawn first, from the caller's generator, into a value that says
everything (``sample_...(generator, config)``), and applied afterwards; the order of the draws is part of the
interface, because a change would change every run.
"""
