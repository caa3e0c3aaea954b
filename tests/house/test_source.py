"""The house rules, read from the source: which way imports point, who touches a matrix, what may not be called."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"api": "api/fluvial", "engine": "engine", "models": "models", "encoders": "encoders", "adapters": "adapters"}
BELOW = {
    "api": {"engine", "models", "encoders", "adapters"},
    "engine": {"models", "encoders", "adapters"},
    "models": {"adapters"},
    "encoders": {"adapters"},
    "adapters": set[str](),
}
MOST_LINES, MANY_LINES = 300, 200

LIBRARY = [(room, path) for room, folder in FOLDERS.items() for path in sorted((ROOT / folder).rglob("*.py"))]
PROGRAMS = [("", path) for folder in ("examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]

# torch's own matrices, which adapters.Linear and adapters.Embedding stand for
RAW = re.compile(
    r"(?:nn|F|functional)\.(?:(?:Lazy)?(?:Linear|Bilinear|Conv\w+)|Embedding(?:Bag)?|MultiheadAttention|Transformer\w*"
    r"|RNN\w*|LSTM\w*|GRU\w*|linear|bilinear|embedding(?:_bag)?)"
)
RUNS_CODE = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def _nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))))


def _place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def _imported(room: str, path: Path, nodes: list[ast.AST]) -> Iterator[tuple[ast.AST, str]]:
    """Every `fluvial` module that a file names: in imports, absolute or relative, and as a string for importlib."""
    inside = path.relative_to(ROOT / FOLDERS[room]).parent.parts
    package = ["fluvial", *([] if room == "api" else [room]), *inside]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"fluvial(\.\w+)+", str(node.value)):
            yield node, str(node.value)


def _room_of(module: str) -> str | None:
    first, _, rest = module.partition(".")
    if first != "fluvial":
        return None
    second = rest.partition(".")[0]
    return second if second in FOLDERS else "api"


@pytest.mark.parametrize("room", FOLDERS)
def test_imports_point_down(room: str) -> None:
    upwards = [
        f"{_place(path, node)}: {room} imports {module}"
        for own, path in LIBRARY
        if own == room
        for node, module in _imported(room, path, _nodes(path))
        if (target := _room_of(module)) is not None and target != room and target not in BELOW[room]
    ]
    assert not upwards, "\n".join(upwards)


def _reads_weight(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "weight"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        if called in {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "get_parameter"}:
            return any(isinstance(a, ast.Constant) and str(a.value).split(".")[-1] == "weight" for a in node.args)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "parts":
        return isinstance(node.slice, ast.Constant) and node.slice.value == "weight"
    return False


def test_only_adapters_touches_a_matrix() -> None:
    past_the_door = []
    for room, path in [*LIBRARY, *PROGRAMS]:
        if room == "adapters":
            continue
        for node in _nodes(path):
            if _reads_weight(node):
                past_the_door.append(f"{_place(path, node)}: reads a .weight; LoRA and formats would be skipped")
            if room and isinstance(node, ast.Attribute):
                name = ".".join(ast.unparse(node).split(".")[-2:])
                if RAW.fullmatch(name):
                    past_the_door.append(f"{_place(path, node)}: {name}; use fluvial.adapters.linear")
    assert not past_the_door, "\n".join(past_the_door)


def _says(call: ast.Call, keyword: str, value: object) -> bool:
    return any(k.arg == keyword and isinstance(k.value, ast.Constant) and k.value.value is value for k in call.keywords)


def _danger(node: ast.AST) -> str | None:
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        bad = RUNS_CODE & {module.split(".")[0] for module in modules}
        return f"imports {bad.pop()}" if bad else None
    if not isinstance(node, ast.Call):
        return None
    called = ast.unparse(node.func)
    if called in {"eval", "exec", "__import__", "os.system", "os.popen"}:
        return f"calls {called}"
    if called == "torch.load" and not _says(node, "weights_only", True):
        return "torch.load without weights_only=True"
    if _says(node, "allow_pickle", True) or _says(node, "shell", True) or _says(node, "trust_remote_code", True):
        return f"{called} runs code from its input"
    return None


def test_nothing_runs_code_that_it_reads() -> None:
    found = [
        f"{_place(path, node)}: {danger}"
        for _, path in [*LIBRARY, *PROGRAMS]
        for node in _nodes(path)
        if (danger := _danger(node))
    ]
    assert not found, "\n".join(found)


def test_files_stay_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for _, path in LIBRARY}
    for name, lines in lengths.items():
        if MANY_LINES < lines <= MOST_LINES:
            warnings.warn(f"{name} has {lines} lines: is it one thing?", stacklevel=1)
    too_long = {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
    assert not too_long, too_long


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("y = x @ self.proj.weight.T", _reads_weight),
        ("w = getattr(layer, 'weight')", _reads_weight),
        ("w = operator.attrgetter('proj.weight')(model)", _reads_weight),
        ("w = layer.parts['weight']", _reads_weight),
        ("import pickle", _danger),
        ("from pickle import loads", _danger),
        ("eval('1')", _danger),
        ("torch.load(path)", _danger),
        ("torch.load(path, weights_only=False)", _danger),
        ("np.load(path, allow_pickle=True)", _danger),
    ],
)
def test_the_rules_see_what_they_forbid(source: str, rule: object) -> None:
    assert callable(rule) and any(rule(node) for node in ast.walk(ast.parse(source)))
    for fine in ("model.eval()", "torch.load(path, weights_only=True)", "x = state['weight']", "weight = 1"):
        assert not any(rule(node) for node in ast.walk(ast.parse(fine)))


def test_the_import_reader_sees_every_spelling() -> None:
    path = ROOT / "models/checkpoints/x.py"
    spellings = {
        "import fluvial.engine": "engine",
        "from fluvial import engine": "engine",
        "from fluvial.encoders.video import Reader": "encoders",
        "from ...engine import session": "engine",
        "from ... import load": "api",
        "importlib.import_module('fluvial.engine.session')": "engine",
        "from . import other": "models",
        "from fluvial.adapters import native": "adapters",
    }
    for source, room in spellings.items():
        found = [_room_of(module) for _, module in _imported("models", path, list(ast.walk(ast.parse(source))))]
        assert found == [room], source
