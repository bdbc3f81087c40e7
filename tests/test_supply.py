"""What is installed: every dependency is pinned with its hashes, and `make` takes it from there."""

import re
import subprocess

import pytest
from packaging.requirements import Requirement

from common.networks import weights
from common.reporting.results import ROOT

LOCK = (ROOT / ".ci" / "requirements.lock").read_text()
HASHES = re.compile(r"\s+--hash=sha256:([0-9a-f]{64})(?: \\)?\n")
ENTRY = re.compile(rf"(?P<pin>[a-z0-9-]+==.+) \\\n(?P<hashes>(?:{HASHES.pattern})+)")
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "python_full_version": "3.11.7"}
MAC = {"sys_platform": "darwin", "platform_machine": "arm64", "python_full_version": "3.13.0"}


def pinned(environment: dict[str, str]) -> dict[str, str]:
    """The locked packages of an environment: {name: "==version"}."""
    found = {}
    for match in ENTRY.finditer(LOCK):
        requirement = Requirement(match["pin"])
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in found
            found[requirement.name] = str(requirement.specifier)
    return found


def test_the_lock_holds_pins_and_hashes_alone():
    rest = "".join(line for line in LOCK.splitlines(True) if not line.startswith("#"))
    assert ENTRY.sub("", rest) == ""
    # No address, host or path: the installer chooses these.
    assert not re.search(r"://|--(?!hash)|@|/", rest)


@pytest.mark.parametrize("environment", [LINUX, MAC], ids=["linux", "mac"])
def test_every_dependency_that_is_asked_for_is_locked(environment):
    asked = [weights.PACKAGE]
    for path in (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt"):
        asked += path.read_text().split()
    found = pinned(environment)
    for words in asked:
        name, version = words.split("==")
        assert found[name.replace("_", "-")] == f"=={version}", "make lock"
    assert found.keys() >= {"jinja2", "sympy", "setuptools"}  # torch requires them
    cuda = {name for name in found if name.startswith(("nvidia-", "triton"))}
    assert bool(cuda) == (environment is LINUX)


def test_make_installs_the_lock_alone():
    words = ["make", "--dry-run", "--always-make", ".venv/.ready", "PYTHON=python3"]
    made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    installs = [line for line in made.stdout.splitlines() if "pip install" in line]
    assert len(installs) == 2
    for line in installs:
        assert "--require-hashes --no-deps" in line
    assert installs[-1].endswith("--no-build-isolation --requirement .ci/requirements.lock")
