"""What the design promises about the tree: one list of losses in every language, and layers that look down only."""

import ast
from pathlib import Path

import pytest

import kdkernels as kd
from kdkernels import _C

PACKAGE = Path(kd.__file__).parent
SOURCES = PACKAGE.parent / "csrc"

# Each part of the package with what it may import from it, besides itself.
BELOW_BACKENDS = {"losses", "kernels", "_C"}
BELOW_API = {"sharded", "weights", "checks", "ops", "backends", "losses"}
USERS = {
    "api",
    "distances",
    "modules",
    "checks",
    "ops",
    "backends",
    "losses",
    "linear",
    "sparse",
    "parallel",
    "methods",
}
ALLOWED = {
    "losses": set(),
    "kernels": set(),
    "backends": BELOW_BACKENDS,
    "rows": set(),
    "sharded": {"checks"},
    "weights": {"backends", "checks"},
    "checks": {"backends", "losses", "rows"},
    "ops": {"backends", "checks", "rows"},
    "api": BELOW_API,
    "distances": BELOW_API,
    "criterion": BELOW_API,
    "modules": {"api", "criterion", *BELOW_API},
    "linear": {"api", *BELOW_API},
    "sparse": {"api", *BELOW_API},
    "parallel": {"api", *BELOW_API},
    "methods": USERS,
    "integrations": USERS,
    "demo": {*USERS, "integrations", "__init__"},
    "__init__": {*USERS},
    "__main__": {*USERS, "_C", "__init__"},
}


def part_of(path: Path) -> str:
    """The layer of a file: the first name below the package."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of kdkernels that a file imports, at any depth of it, relative or absolute."""
    package = ("kdkernels", *path.relative_to(PACKAGE).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            names |= {(*module, alias.name) for alias in node.names}
    inside = {name for name in names if name[0] == "kdkernels"}
    known = {part_of(file) for file in PACKAGE.rglob("*.py")} | {"_C"}
    return {name[1] if len(name) > 1 and name[1] in known else "__init__" for name in inside}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers_look_down_only(path):
    layer = part_of(path)
    assert layer in ALLOWED, f"{layer} has no place in the layers: give it one in this test and in the design"
    above = imported_parts(path) - ALLOWED[layer] - {layer}
    assert not above, f"{path.relative_to(PACKAGE)} is in {layer} and imports {sorted(above)}"


def test_the_import_reader_reads_imports(tmp_path, monkeypatch):
    """The rule above is worth what its reader sees: every way to write an import, and inside functions too."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    for name in ("api", "checks", "losses", "kernels", "ops"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    file = tmp_path / "losses" / "some.py"
    file.write_text(
        "from .base import Loss\nfrom .. import api\nfrom ..checks import logits\n"
        "def late():\n    import kdkernels.ops.softmax\n    from kdkernels.kernels import tile\n    import torch\n"
    )
    assert imported_parts(file) == {"losses", "api", "checks", "ops", "kernels"}
    file.write_text("import kdkernels\nfrom kdkernels import divergence\n")
    assert imported_parts(file) == {"__init__"}


def test_the_cplusplus_list_of_losses_is_the_registry():
    assert sorted(_C.losses()) == sorted(kd.LOSSES)


@pytest.mark.parametrize("name", kd.LOSSES)
def test_one_spelling_per_loss(name):
    loss = kd.LOSSES[name]
    assert loss.name == name
    assert (PACKAGE / "losses" / f"{name}.py").is_file()
    assert loss.__module__ == f"kdkernels.losses.{name}"
    assert loss.__name__.lower() == name.replace("_", "")
    assert getattr(kd, loss.__name__) is loss
    assert loss.__name__ in kd.__all__


@pytest.mark.parametrize("name", kd.LOSSES)
def test_one_cplusplus_term_per_loss(name):
    if not SOURCES.is_dir():
        pytest.skip("an installed package without its csrc/")
    assert (SOURCES / "terms" / f"{name}.h").is_file()
    assert f"{name}.h" in (SOURCES / "terms" / "all.h").read_text()


def test_no_loss_file_is_left_out_of_the_registry():
    """A loss that is written and not registered would be neither tested nor measured."""
    shared = {"__init__", "base", "mixture"}
    assert {path.stem for path in (PACKAGE / "losses").glob("*.py")} - shared == set(kd.LOSSES)


def test_everything_that_is_exported_exists_and_is_documented():
    for name in kd.__all__:
        exported = getattr(kd, name)
        assert not callable(exported) or exported.__doc__, f"{name} has no docstring"
