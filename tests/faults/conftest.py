import functools

import pytest

from tests.faults import harness


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """`reference(call, ranks=1)` is an uninterrupted run of a call: (its digest, its folder)."""

    @functools.cache
    def run(call, ranks=1):
        folder = tmp_path_factory.mktemp("reference")
        code, said = harness.end(harness.start(call, folder, ranks))
        assert code == 0, said
        return harness.digest(folder / "out"), folder

    return run
