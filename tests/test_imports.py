"""The rooms of ARCHITECTURE.md are what the code is."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "imagen_video_jax"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
# Only these know the layer library.
NNX = ("models/", "text/", "evaluation/", "functional.py")
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {
    ("os", "system"),
    ("os", "popen"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("pd", "read_pickle"),
}
FORBIDDEN_MODULES = {"pickle", "dill", "joblib", "shelve", "marshal", "torch", "tensorflow"}


def rooms() -> dict[str, tuple[int, int]]:
    """file -> (row, line of the table); files of a line share its row, in the order they are written."""
    found, position = {}, 0
    for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines():
        match = re.match(r"\| (\d) \| (.+?) \|", line)
        if not match:
            continue
        folder = ""
        for name in re.findall(r"`([^`]+)`", match[2]):
            if "/" in name:
                folder = name.rsplit("/", 1)[0] + "/"
            elif folder and not name.startswith("_"):
                name = folder + name
            found[name] = (int(match[1]), position)
            position += 1
    return found


ROOMS = rooms()


def place(name: str) -> tuple[int, int]:
    if name in ROOMS:
        return ROOMS[name]
    folder = name.rsplit("/", 1)[0] + "/..."
    assert folder in ROOMS, f"{name} is in no room of ARCHITECTURE.md"
    return ROOMS[folder]


def imports(path: pathlib.Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            modules.add(node.module)
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def own_files(modules: set[str]) -> set[str]:
    names = {module.removeprefix("imagen_video_jax.").replace(".", "/") + ".py" for module in modules}
    return {name for name in names if (PACKAGE / name).is_file()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_imports_only_from_above(path):
    name = path.relative_to(PACKAGE).as_posix()
    here = place(name)
    for used in own_files({module for module in imports(path) if module.startswith("imagen_video_jax.")}):
        same_open_room = place(used) == here and used != name
        assert place(used) < here or same_open_room, f"{name} (row {here[0]}) imports {used} (row {place(used)[0]})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_keeps_the_house_rules(path):
    name = path.relative_to(PACKAGE).as_posix()
    modules = imports(path)
    if not name.startswith(NNX):
        assert not any(module.startswith("flax") for module in modules), f"{name} knows flax"
    assert not {module.split(".")[0] for module in modules} & FORBIDDEN_MODULES
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{name} calls {node.func.id}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in FORBIDDEN_METHODS, f"{name} uses {node.value.id}.{node.attr}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
            assert "allow_pickle" in {keyword.arg for keyword in node.keywords}, f"{name}: np.load without allow_pickle"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=str)
def test_an_init_holds_a_docstring_only(path):
    body = ast.parse(path.read_text()).body
    assert isinstance(body[0], ast.Expr)
    rest = [node for node in body[1:] if not (path.parent == PACKAGE and isinstance(node, ast.Assign))]
    assert not rest


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.name)
def test_experiment_files_are_data_and_need_no_jax(path):
    allowed = {"experiments", "ml_collections"}
    assert {module.split(".")[0] for module in imports(path)} <= allowed
