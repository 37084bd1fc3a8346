"""``sensorlab data prepare | check | show | synth``."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from sensorlab.errors import UserError


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``data`` command."""
    data = subparsers.add_parser("data", help="prepare, check and show datasets")
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _register_prepare(commands)
    _register_check(commands)
    _register_show(commands)
    if find_spec("sensorlab.data.synthetic.commands") is not None:
        from sensorlab.data.synthetic import commands as synthetic

        synthetic.register(commands)


def _register_prepare(commands: argparse._SubParsersAction) -> None:
    prepare = commands.add_parser("prepare", help="turn a published dataset into shards")
    sources = prepare.add_subparsers(dest="source", required=True, metavar="SOURCE")
    parser = sources.add_parser(
        "nuscenes",
        help="a nuScenes dataroot, or anything in its format",
        description="Write the keyframes of a nuScenes dataroot as Parquet shards. Repeating the command continues an "
        "interrupted preparation, or verifies a finished one.",
    )
    parser.add_argument("--dataroot", required=True, help="directory with samples/, sweeps/ and the tables")
    parser.add_argument("--version", required=True, help="directory of the tables, for example v1.0-mini")
    parser.add_argument("--out", required=True, help="directory of the dataset to write")
    parser.add_argument("--sweeps", type=int, default=1, help="files per radar and lidar, keyframe included (1)")
    parser.add_argument("--modalities", default="camera,radar,lidar", help="sensors to keep (camera,radar,lidar)")
    parser.add_argument("--image-height", type=int, help="re-encode images to this height, intrinsics exact")
    parser.add_argument("--val-scenes", help="scenes of the val split, separated by commas; all others are train")
    parser.add_argument(
        "--split", action="append", default=[], metavar="NAME=SCENE,...", help="scenes of any split; repeatable"
    )
    parser.add_argument("--workers", type=int, help="Ray tasks at a time; 0 = this process; default: by amount of work")
    parser.add_argument("--row-group-size", type=int, default=8, help="samples per row group, the unit of reading (8)")
    parser.add_argument("--samples-per-shard", type=int, default=32, help="samples per Parquet file (32)")
    parser.set_defaults(run=_prepare_nuscenes)


def _prepare_nuscenes(args: argparse.Namespace) -> None:
    from sensorlab.data.prepare import prepare_nuscenes

    prepare_nuscenes(
        args.dataroot,
        args.version,
        args.out,
        sweeps=args.sweeps,
        modalities=args.modalities.split(","),
        splits=_parse_splits(args.split, args.val_scenes),
        image_height=args.image_height,
        row_group_size=args.row_group_size,
        samples_per_shard=args.samples_per_shard,
        workers=args.workers,
        report=_print,
    )


def _parse_splits(options: list[str], val_scenes: str | None) -> dict[str, list[str]]:
    """``["val=a,b"]`` to ``{"val": ["a", "b"]}``."""
    splits: dict[str, list[str]] = {}
    for option in [*options, *([f"val={val_scenes}"] if val_scenes else [])]:
        name, equals, scenes = option.partition("=")
        members = [scene.strip() for scene in scenes.split(",") if scene.strip()]
        if not equals or not members:
            raise UserError(f"--split {option!r}: expected NAME=SCENE,SCENE,...")
        splits.setdefault(name, []).extend(members)
    return splits


def _register_check(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("check", help="verify a prepared dataset; exit code 1 if it has faults")
    parser.add_argument("dataset", help="directory written by `sensorlab data prepare`")
    parser.add_argument("--fast", action="store_true", help="do not decode the images")
    parser.set_defaults(run=_check)


def _check(args: argparse.Namespace) -> int:
    from sensorlab.data.check import check_dataset

    result = check_dataset(args.dataset, fast=args.fast, report=_print)
    for line in result.lines():
        _print(line)
    return 1 if result.findings else 0


def _register_show(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("show", help="draw one sample: cameras with boxes and radar, bird's-eye view")
    parser.add_argument("dataset", help="directory written by `sensorlab data prepare`")
    parser.add_argument("--index", type=int, default=0, help="number of the sample in its split (0)")
    parser.add_argument("--split", help="split (the first one)")
    parser.add_argument("--out", required=True, help="image file to write, for example sample.png")
    parser.set_defaults(run=_show)


def _show(args: argparse.Namespace) -> None:
    from sensorlab.data.show import show_sample

    _print(str(show_sample(args.dataset, args.index, args.out, args.split)))


def _print(line: str) -> None:
    print(line, flush=True)
