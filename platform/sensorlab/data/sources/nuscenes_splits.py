"""Which scene belongs to which split.

The official lists are facts of the dataset (nuScenes, 1000 scenes: 700 train, 150 val, 150 test; v1.0-mini: 8 and 2),
written here as ranges of scene numbers. Other dataroots say it in their scene names or by an option.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

from sensorlab.errors import UserError

_TRAIN = """
1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 202-204 206-214 218-220 222
224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 410-459 461-465 467-469 471-472 474-480 499-502 504-515
517-518 525-539 541-546 566 568 570-578 580 582-600 639-679 681 683-689 695-698 700-701 703-719 726-728 730-731 733-741
744 746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813 815-817 819-822 847-856 858 860-866 868-873 875-878
880 882-903 945 947 949 952-953 955-961 975-984 988-992 994-1025 1044-1058 1074-1102 1104-1110
"""
_VAL = """
3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 770-771 775 777-778
780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073
"""
_TEST = """
77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 827-831 833-842 844-846
932-933 935-943 1026-1043
"""
_MINI_TRAIN = "61 553 655 757 796 1077 1094 1100"
_MINI_VAL = "103 916"

_WORD = re.compile(r"(?<![a-z])(train|val|test)(?![a-z])", re.IGNORECASE)


def _scenes(ranges: str) -> tuple[str, ...]:
    names = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        names += [f"scene-{number:04d}" for number in range(int(first), int(last or first) + 1)]
    return tuple(names)


OFFICIAL_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": _scenes(_TRAIN),
    "val": _scenes(_VAL),
    "test": _scenes(_TEST),
}
# Officially these are mini_train and mini_val; a prepared dataset calls them train and val like any other.
MINI_SPLITS: Mapping[str, tuple[str, ...]] = {"train": _scenes(_MINI_TRAIN), "val": _scenes(_MINI_VAL)}


def assign_splits(
    scenes: Sequence[str], version: str, given: Mapping[str, Sequence[str]] | None = None
) -> dict[str, list[str]]:
    """Scenes of each split, sorted by name; splits without a scene are left out.

    In this order: ``given`` names the scenes of some splits, and every other scene is ``train``; the official lists
    (those of the mini version if ``version`` ends with "mini"), if they know every scene; the word train, val or test
    in the scene's own name.

    Raises:
        UserError: ``given`` has a split name that is no word, an unknown scene or one scene twice; or nothing says
            where a scene belongs.
    """
    if given:
        split_of = _from_option(scenes, given)
    else:
        split_of = _from_lists(scenes, version) or _from_names(scenes)
    splits: dict[str, list[str]] = {}
    for name in ("train", "val", "test", *sorted(set(split_of.values()))):
        members = sorted(scene for scene, split in split_of.items() if split == name)
        if members:
            splits[name] = members
    return splits


def _from_option(scenes: Sequence[str], given: Mapping[str, Sequence[str]]) -> dict[str, str]:
    split_of = dict.fromkeys(scenes, "train")
    named: set[str] = set()
    for split, members in given.items():
        if not split.isidentifier():  # it becomes the name of a directory
            raise UserError(f"split name {split!r}: use letters, digits and underscores")
        for scene in members:
            if scene not in split_of:
                near = difflib.get_close_matches(scene, scenes, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"the first scenes are {', '.join(sorted(scenes)[:5])}"
                raise UserError(f"split {split!r} names scene {scene!r}, which the dataroot does not have; {hint}")
            if scene in named:
                raise UserError(f"scene {scene!r} is given to two splits; a scene belongs to one")
            named.add(scene)
            split_of[scene] = split
    return split_of


def _from_lists(scenes: Sequence[str], version: str) -> dict[str, str] | None:
    lists = MINI_SPLITS if version.endswith("mini") else OFFICIAL_SPLITS
    known = {scene: split for split, members in lists.items() for scene in members}
    if not scenes or any(scene not in known for scene in scenes):
        return None
    return {scene: known[scene] for scene in scenes}


def _from_names(scenes: Sequence[str]) -> dict[str, str]:
    split_of, unknown = {}, []
    for scene in scenes:
        words = {word.lower() for word in _WORD.findall(scene)}
        if len(words) == 1:
            split_of[scene] = words.pop()
        else:
            unknown.append(scene)
    if unknown:
        shown = ", ".join(sorted(unknown)[:5]) + (", ..." if len(unknown) > 5 else "")
        raise UserError(
            f"no split is known for {len(unknown)} of {len(scenes)} scenes ({shown}): they are not in the official "
            "lists and their names do not hold the word train, val or test; use --val-scenes or --split NAME=SCENE,..."
        )
    return split_of
