"""Configuration: strict typed models, YAML files, dotted overrides and the digest that identifies a configuration.

Every component declares its own ``Config`` next to its code by subclassing :class:`StrictModel`; an experiment is a
tree of them. A configuration is complete: what is not written in the YAML file has the default that the class states,
and :func:`digest` covers both. Nothing is read from anywhere else.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import CoreSchema, core_schema

from sensorlab.errors import UserError

ModelT = TypeVar("ModelT", bound="StrictModel")


class StrictModel(BaseModel):
    """Base of every configuration class: immutable, no coercion, unknown keys, NaN and infinities refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Text:
    """Base of values that a configuration writes as text (or a list of texts), for example ``12 epochs``."""

    @classmethod
    def parse(cls, value: Any) -> Any:
        """The value of a text; values pass unchanged. Raises ``ValueError``."""
        raise NotImplementedError

    def plain(self) -> Any:
        """The value as it is written in a file."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.plain())
        )


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads ``1e-3`` as a number, as every user expects."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"key {key!r} is written twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def _register_float(loader: type[yaml.SafeLoader]) -> None:
    import re

    # YAML 1.1 reads "1e-3" as a string; accept every usual way to write a float.
    pattern = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d+([eE][-+]?\d+)?)$")
    loader.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+0123456789."))


_register_float(_UniqueKeyLoader)


def parse_yaml(text: str) -> Any:
    """Parse one YAML document with the rules above. Raises ``UserError`` with the position of a syntax error."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2020-13-01
        raise UserError(f"not valid YAML: {error}") from error


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping from ``path``. A ``base:`` key names another file, relative to this one, to start from.

    Raises:
        UserError: the file is missing, not UTF-8, not YAML, not a mapping, or its chain of bases loops.
    """
    return _load_chain(Path(path).resolve(), ())


def _load_chain(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise UserError(f"{path}: 'base' loops: {' -> '.join(p.name for p in (*seen, path))}")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping at the top, found {type(content).__name__}")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"{path}: 'base' must be the name of one file, found {base!r}")
    return merge(_load_chain((path.parent / base).resolve(), (*seen, path)), content)


# Sections whose ``name`` says which keys they have: under another name, none of the old keys means anything.
TAGGED_SECTIONS = frozenset({"task", "schedule", "data.sampling"})
# Sections whose values are whole, even where they are mappings: a search dimension is either of one kind or another.
SECTIONS_OF_WHOLE_VALUES = frozenset({"sweep.space"})


def merge(base: Mapping[str, Any], update: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Deep merge: mappings are merged key by key, everything else is replaced. Inputs stay untouched.

    Two kinds of mappings are replaced as a whole too: a section of ``TAGGED_SECTIONS`` when ``update`` gives it another
    ``name``, and the values of ``SECTIONS_OF_WHOLE_VALUES``. ``optim`` is no tagged section: its optimisers share keys.

    Args:
        section: dotted key of the two mappings in the whole configuration.
    """
    merged = dict(base)
    for key, value in update.items():
        dotted = f"{section}.{key}" if section else str(key)
        old = merged.get(key)
        if not isinstance(value, Mapping) or not isinstance(old, Mapping) or section in SECTIONS_OF_WHOLE_VALUES:
            merged[key] = value
        elif dotted in TAGGED_SECTIONS and "name" in value and old.get("name", value["name"]) != value["name"]:
            merged[key] = dict(value)
        else:
            merged[key] = merge(old, value, dotted)
    return merged


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply command-line overrides such as ``optim.lr=1e-3`` or ``task.grid.z=[-50, 50]`` to a nested mapping.

    Values are YAML. Whether the key exists is decided by the schema, in :func:`validate`. The overrides are put
    together before they are merged into ``tree``: a ``name`` among them drops keys of ``tree`` and none of theirs.

    Raises:
        UserError: an override without ``=``, or with a value that is not YAML.
    """
    together: dict[str, Any] = {}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise UserError(f"override {override!r}: expected key=value, for example optim.lr=1e-3")
        together = merge(together, nested(dotted, parse_yaml(text)))
    return merge(tree, together)


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """``nested("a.b", 1)`` is ``{"a": {"b": 1}}``."""
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def validate(model: type[ModelT], tree: Mapping[str, Any], where: str = "configuration", prefix: str = "") -> ModelT:
    """Build ``model`` from a nested mapping.

    Args:
        where: what the mapping is, for messages; a file where there is one.
        prefix: dotted key of the mapping in the whole, for messages.

    Raises:
        UserError: one line per fault, each naming the dotted key, what was found, and for an unknown key the nearest
            valid one.
    """
    try:
        # YAML has no tuples; validating the JSON form lets strict models accept lists for them.
        return model.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        lines = [_explain(model, dict(fault), prefix) for fault in error.errors()]
        raise UserError(f"{where} is not valid:\n  " + "\n  ".join(lines)) from None
    except UserError as error:  # of a part that validates itself
        raise UserError(f"{where}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} holds a value that YAML/JSON cannot express: {error}") from error


def _explain(model: type[BaseModel], fault: Mapping[str, Any], prefix: str) -> str:
    location = [str(part) for part in fault["loc"]]
    dotted = prefix + ".".join(location)
    if fault["type"] == "extra_forbidden":
        valid = _fields_at(model, location[:-1])
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]!r}?"
            if near and near[0] != location[-1]
            else f"valid keys here: {', '.join(sorted(valid))}"
        )
        return f"{dotted}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{dotted}: missing"
    message = fault["msg"].removeprefix("Value error, ")
    # A rule over several keys names them itself; the whole section would drown it.
    found = "" if isinstance(fault["input"], Mapping) else f" (found {fault['input']!r})"
    return f"{dotted}: {message}{found}" if dotted else f"{message}{found}"


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Field names of the (possibly nested) model at ``location``; union tags in the location choose the member."""
    current: list[type[BaseModel]] = [model]
    for part in location:
        tagged = [c for c in current if "name" in c.model_fields and c.model_fields["name"].default == part]
        if tagged:
            current = tagged
            continue
        following: list[type[BaseModel]] = []
        for candidate in current:
            if part in candidate.model_fields:
                following += _models_in(candidate.model_fields[part].annotation)
        if following:
            current = following
    return sorted({name for candidate in current for name in candidate.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found += _models_in(argument)
    return found


def as_dict(config: BaseModel) -> dict[str, Any]:
    """The complete configuration as plain JSON types."""
    return config.model_dump(mode="json")


def canonical_json(tree: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(config: BaseModel | Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of a configuration."""
    tree = as_dict(config) if isinstance(config, BaseModel) else config
    return hashlib.sha256(canonical_json(tree).encode()).hexdigest()[:16]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to ``{dotted key: leaf}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
