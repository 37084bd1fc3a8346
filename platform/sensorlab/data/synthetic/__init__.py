"""The embedded world: a deterministic generator of nuScenes dataroots, so that everything runs without a download.

It writes what a nuScenes dataset is made of (tables, images, lidar and radar files) and nothing else knows about it:
the real reader is the only way in.
"""
