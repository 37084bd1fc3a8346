"""The reference of every configuration key, written from the classes that define them.

``sensorlab config`` prints it; ``docs/configuration.md`` is its output, and a test keeps the two equal.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sensorlab.config import StrictModel, Text

_TYPE_NOISE = re.compile(r"\b(sensorlab\.[\w.]+\.|typing\.|annotated_types\.|collections\.abc\.)")


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("config", help="print the reference of all configuration keys")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    print(reference(), end="")
    return 0


def reference() -> str:
    """All keys of experiments, sweeps and tasks as Markdown."""
    from sensorlab.cluster.sweep_config import SweepConfig
    from sensorlab.experiment import ExperimentConfig
    from sensorlab.tasks.base import task_class, task_names

    parts = [
        "# Configuration reference",
        "Written by `sensorlab config` from the classes; do not edit. Every key can be set in the YAML file or as "
        "`key=value` on the command line. A key without a default must be given.",
        "## Experiment",
        *_tables(ExperimentConfig, "", skip=("task",)),
    ]
    for name in task_names():
        parts += [f"## Task {name}", *_tables(task_class(name).Config, "task.")]
    parts += ["## Sweep", *_tables(SweepConfig, "sweep.")]
    return "\n\n".join(parts) + "\n"


def _tables(
    model: type[BaseModel], prefix: str, skip: tuple[str, ...] = (), above: frozenset[type[BaseModel]] = frozenset()
) -> Iterator[str]:
    """One table per class: its own keys, then those of the classes inside of it that have none ``above`` already."""
    comments = _comments(model)
    rows, inner = [], []
    for name, field in model.model_fields.items():
        if name in skip:
            continue
        models = _models(field.annotation)
        if models:
            inner += [(f"{prefix}{name}.", each, above.union(models)) for each in models if each not in above]
        if not models or len(models) > 1 or not _has_model_default(field):
            default = _default(field)
            rows.append(f"| `{prefix}{name}` | {_type(field)} | {default} | {comments.get(name, '')} |")
    heading = f"### `{prefix.rstrip('.')}`: {model.__name__}" if prefix else f"### {model.__name__}"
    summary = inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    if rows:
        yield "\n".join(
            [heading, "", summary, "", "| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
        )
    else:
        yield f"{heading}\n\n{summary}"
    for inner_prefix, each, known in inner:
        yield from _tables(each, inner_prefix, above=known)


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """The comment behind each field in the source of its class, or of the class it is inherited from."""
    comments = {}
    for owner in reversed(model.__mro__[: model.__mro__.index(StrictModel)]):
        source = textwrap.dedent(inspect.getsource(owner))
        lines = source.splitlines()
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                last = lines[(node.end_lineno or node.lineno) - 1]
                comment = last[node.end_col_offset or 0 :].partition("#")[2].strip()
                comments[node.target.id] = comment.replace("|", "\\|")
    return comments


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models(argument)]


def _has_model_default(field: FieldInfo) -> bool:
    return field.is_required() or isinstance(field.default, BaseModel)


def _type(field: FieldInfo) -> str:
    models = _models(field.annotation)
    annotation = _without_bounds(field.annotation)
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = _TYPE_NOISE.sub("", text)
    for model in models:
        text = text.replace(f"{model.__module__}.", "")
    return f"`{text}`".replace("|", "\\|")


def _without_bounds(annotation: Any) -> Any:
    """The type inside of ``Annotated``, also where it is an argument of another type."""
    if get_origin(annotation) is Annotated:
        return _without_bounds(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return tuple[tuple(_without_bounds(argument) for argument in get_args(annotation))]  # type: ignore[misc]
    return annotation


def _plain(value: Any) -> Any:
    return value.plain() if isinstance(value, Text) else list(value)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.default
    if isinstance(value, BaseModel):
        value = getattr(value, "name", type(value).__name__)
    return f"`{json.dumps(value, default=_plain)}`"
