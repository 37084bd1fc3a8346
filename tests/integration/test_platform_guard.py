"""The rules that keep the repository importable: no package called ``platform``, imports that point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "platform" / "sensorlab"

# Sub-packages and modules from the bottom up: what stands in one line may import what stands in it and above it.
LAYERS = (
    ("errors", "config", "__init__"),
    ("geometry",),
    ("data", "models", "metrics", "runs"),
    ("tasks",),
    ("engine", "experiment"),
    ("cluster", "selftest", "report"),
    ("bench", "replay"),
    ("cli", "config_reference"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ALLOWED_UPWARD = {
    # The sub-packages' command lines are composed by cli.py and may reach for what they command.
    "commands",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """Top-level part of the package that a file belongs to: ``data``, ``config``, ..."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Absolute names that a file imports when it is used; those for type checkers only do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_platform_is_no_package():
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "__init__.py").exists()


@pytest.mark.parametrize("arguments", [["-c"], ["-P", "-c"]] if sys.version_info >= (3, 11) else [["-c"]])
def test_standard_library_platform_wins_at_the_root(arguments):
    code = "import platform, torch; assert platform.system(); print(platform.__file__)"
    done = subprocess.run([sys.executable, *arguments, code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith(str(ROOT)), done.stdout


def test_every_part_has_its_place():
    assert {part_of(path) for path in modules()} <= RANK.keys()


def test_imports_point_one_way():
    wrong = []
    for path in modules():
        own = part_of(path)
        for name in imports_of(path):
            if not name.startswith("sensorlab.") or path.stem in ALLOWED_UPWARD:
                continue
            other = name.split(".")[1]
            if other in RANK and RANK[other] > RANK[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_a_wrong_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from sensorlab.cluster import sweep\n    import experiments.tune_bev\n")
    assert imports_of(bad) == {"sensorlab.cluster.sweep", "experiments.tune_bev"}


def test_nothing_in_the_package_imports_experiments():
    wrong = [str(path) for path in modules() for name in imports_of(path) if name.split(".")[0] == "experiments"]
    assert not wrong


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("engine", {"ray", "mlflow"}),
        ("models", {"ray", "mlflow", "pydantic", "yaml"}),
        ("geometry", {"ray", "mlflow", "pydantic"}),
        ("metrics", {"ray", "mlflow"}),
        ("tasks", {"ray", "mlflow"}),
    ],
)
def test_what_a_part_must_not_know(part, forbidden):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        if part_of(path) == part
        for name in imports_of(path)
        if name.split(".")[0] in forbidden
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.ray
def test_ray_workers_see_the_standard_library_and_the_package():
    import ray

    from sensorlab.cluster.start import connect, disconnect

    @ray.remote(num_cpus=0.1)
    def look() -> tuple[str, str, str]:
        import platform

        import torch

        import sensorlab

        return platform.__file__, torch.__version__, sensorlab.__file__

    cluster = connect(num_cpus=1)
    try:
        assert cluster.local
        assert cluster.cpus == 1
        platform_file, torch_version, package_file = ray.get(look.remote(), timeout=120)
    finally:
        disconnect()
    assert not platform_file.startswith(str(ROOT))
    assert torch_version
    assert Path(package_file).parent == PACKAGE
