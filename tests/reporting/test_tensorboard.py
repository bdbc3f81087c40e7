import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from common.cli import Parser
from common.reporting import parts, results
from common.reporting.results import Findings


def parser():
    made = Parser("")
    made.add("--tensorboard", action=parts.TensorBoardFlag, nargs=0, help="")
    return made


def test_without_the_package_a_line_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(parts.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["--tensorboard"])
    assert stop.value.code == 2
    assert "python -m pip install tensorboard\n" in capsys.readouterr().err
    assert not parser().parse_args([]).tensorboard


def test_scalars_and_figures_are_those_of_the_result(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, place):
            self.place = place.rpartition("/")[2]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def add_scalar(self, *scalar):
            written.append((self.place, *scalar))

        def add_image(self, name, pixels, dataformats):
            written.append((self.place, name, pixels.shape, dataformats))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    histories = [[{"epoch": 1, "val_loss": 2.5, "val_top1": None}], [{"epoch": 1, "val_loss": 3.0}]]
    result = {"runs": {"wide": {"runs": [{"history": history} for history in histories]}}}
    draw = Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save
    findings = Findings(result, figures={"2.3_x.png": lambda path: draw(path, "PNG")})
    results.publish(tmp_path, "2.3", findings, {"call_seconds": 1})
    parts.write_tensorboard(tmp_path)
    assert written == [
        ("2.3 wide seed 0", "val_loss", 2.5, 1),
        ("2.3 wide seed 1", "val_loss", 3.0, 1),
        ("2.3 figures", "2.3_x.png", (4, 6, 3), "HWC"),
    ]
