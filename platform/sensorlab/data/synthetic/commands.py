"""``sensorlab data synth``: write the embedded world."""

from __future__ import annotations

import argparse


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the command to the parsers of ``sensorlab data``."""
    parser = subparsers.add_parser(
        "synth",
        help="write the embedded world, a generated nuScenes dataroot",
        description="Write a nuScenes dataroot of generated scenes: 6 cameras, 5 radars, 1 lidar, all 13 tables. "
        "The same arguments give the same bytes.",
    )
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--scenes", type=int, default=8, help="scenes in all (default %(default)s)")
    parser.add_argument("--val-scenes", type=int, default=2, help="how many of them are for validation (%(default)s)")
    parser.add_argument("--keyframes", type=int, default=10, help="keyframes per scene, at 2 Hz (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what the world is drawn from (%(default)s)")
    parser.add_argument("--image-size", type=_image_size, default=(800, 450), metavar="WxH", help="pixels (800x450)")
    parser.add_argument("--no-sweeps", action="store_true", help="keyframes only, no lidar and radar sweeps between")
    parser.add_argument("--lidar-rate", type=int, default=10, help="lidar sweeps per second, 10 or 20 (%(default)s)")
    parser.add_argument("--lidar-azimuths", type=int, default=720, help="lidar columns per turn (%(default)s)")
    parser.add_argument("--version", default="v1.0-mini", help="name of the folder of the tables (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes; changes the time only (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an embedded world made from other arguments")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the world and say what is there now."""
    from sensorlab.data.synthetic.writer import write_world

    summary = write_world(
        args.out,
        scenes=args.scenes,
        keyframes=args.keyframes,
        seed=args.seed,
        image_size=args.image_size,
        sweeps=not args.no_sweeps,
        version=args.version,
        val_scenes=args.val_scenes,
        lidar_rate=args.lidar_rate,
        lidar_azimuths=args.lidar_azimuths,
        workers=args.workers,
        overwrite=args.overwrite,
        progress=lambda line: print(line, flush=True),
    )
    state = "unchanged" if summary.reused else f"written in {summary.seconds:.1f} s"
    print(
        f"{summary.path} ({summary.version}, {state}): {summary.train_scenes} train + {summary.val_scenes} val scenes, "
        f"{summary.keyframes} keyframes, {summary.annotations} boxes, {summary.images} images, "
        f"{summary.lidar_sweeps} lidar sweeps, {summary.radar_sweeps} radar sweeps"
    )


def _image_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, for example 800x450, found {text!r}")
    return int(width), int(height)
