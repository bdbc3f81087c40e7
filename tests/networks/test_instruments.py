"""Every instrument works alone: its docstring's three lines run, and it uses no flags."""

import ast
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest

import common.networks

INSTRUMENTS = [module.name for module in pkgutil.iter_modules(common.networks.__path__)]


def source(instrument):
    return (Path(common.networks.__path__[0]) / f"{instrument}.py").read_text()


def example(instrument):
    """The first indented block of a module's docstring."""
    # Read it from the source, because newer Pythons strip the indentation of docstrings.
    doc = ast.get_docstring(ast.parse(source(instrument)), clean=False)
    blocks = [block for block in doc.split("\n\n") if block.startswith("    ")]
    return textwrap.dedent(blocks[0]).strip()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_the_three_lines_at_its_head_run(instrument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", None)  # no network
    lines = example(instrument)
    assert len(lines.splitlines()) == 3
    assert re.search(rf"common\.networks(\.| import .*\b){instrument}\b", lines)
    exec(compile(lines, f"the docstring of {instrument}", "exec"), {})  # noqa: S102 it is ours


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_it_knows_neither_flags_nor_an_experiment(instrument):
    text = source(instrument).replace("pip install --no-deps", "").replace("--force-reinstall", "")
    for word in ("argparse", r"args\.", "xperiment", r" --\w", r"common\.cli"):
        assert not re.search(word, text), word
