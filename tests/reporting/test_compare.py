import pytest

from common.reporting import page
from tests.reporting.test_html import publish

ROW = {"test_top1": 50.0, "test_top1_low": 48.0, "test_top1_high": 52.0, "test_top1_std": None}
FLOWERS = {"parameters": 7, "runs": {"narrow": {**ROW, "runs": [{"history": [], "x": 1}]}}}
PHOTOS = {"images": {"cat": {"l1": 7.0, "size": [3, 4]}, "dog": {"l1": 2.0, "size": [5, 6]}}}


@pytest.fixture
def both(tmp_path):
    """Publish two results of a part: `both(part, a, b)` returns their folders."""

    def publish_both(part, *pair):
        for name, result in zip("ab", pair, strict=True):
            folder = f"problem{part[0]}"
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
            publish(tmp_path / name, folder, part, result)
        return tmp_path / "a", tmp_path / "b"

    return publish_both


def changed(row, **values):
    return {**FLOWERS, "runs": {"narrow": {**row, **values}}}


def test_the_same_run_agrees_in_all_numbers(both, run):
    both("1.1", PHOTOS, PHOTOS)
    folders = both("2.3", FLOWERS, FLOWERS)
    code, out, _ = run(page, "--compare", *folders)
    assert code == 0
    assert out.endswith("agrees with " + str(folders[1]) + " in 5 of 5 numbers that no training"
                        " decides.\n")  # fmt: skip


@pytest.mark.parametrize(
    ("l1", "code"), [(7.0, 0), (7.0 * (1 + 0.9 * page.RELATIVE), 0), (7.1, 1), (None, 1)]
)
def test_a_deterministic_number_that_differs_ends_in_1(both, run, l1, code):
    other = {"images": {**PHOTOS["images"], "cat": {"l1": l1, "size": [3, 4]}}}
    found, out, _ = run(page, "--compare", *both("1.1", PHOTOS, other))
    assert found == code
    assert ("DIFFERS: problem1 1.1 / images / cat / l1: 7 in" in out) == bool(code)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, None),
        ({"test_top1": 51.0, "test_top1_low": 49.0, "test_top1_high": 53.0}, "within"),
        ({"test_top1": 60.0, "test_top1_low": 58.0, "test_top1_high": 62.0}, "beyond"),
    ],
)
def test_trainings_differ_within_or_beyond_their_spread(both, values, kind):
    done = page.compare(*both("2.3", FLOWERS, changed(ROW, **values)))
    assert (len(done.within), len(done.beyond)) == (kind == "within", kind == "beyond")
    assert done.differ == []


def test_seeds_tell_a_spread_of_their_own(both):
    a = changed(ROW, test_top1_std=2.0)
    far = {"test_top1": 55.0, "test_top1_low": 54.0, "test_top1_high": 57.0}
    done = page.compare(*both("2.3", a, changed(ROW, **far, test_top1_std=1.0)))
    assert len(done.within) == 1
    done = page.compare(*both("2.3", a, changed(ROW, **far, test_top1_std=0.1)))
    assert len(done.beyond) == 1


def test_losses_of_trained_weights_are_compared_too(both):
    a, b = ({"curves": {"weights": {"l1": {"relative": [value]}}}} for value in (1.0, 2.0))
    where = "problem1 1.3 / curves / weights / l1 / relative"
    assert page.compare(*both("1.3", a, b)).differ == [(where, [1.0], [2.0])]


def test_what_the_machine_decides_is_left_out(both):
    a = {"parameters": 7, "block_seconds": 1.0, "step_cost_share": 0.1}
    b = {"parameters": 7, "block_seconds": 2.0, "step_cost_share": 0.2}
    done = page.compare(*both("2.5", a, b))
    assert (done.agree, done.differ) == (1, [])


def test_other_flags_differ(both):
    a, b = ({"recipe": {"epochs": epochs}} for epochs in (2, 3))
    assert page.compare(*both("2.2", a, b)).differ == [("problem2 2.2 / recipe / epochs", 2, 3)]


def test_folders_without_a_common_part_are_refused(both, fails, tmp_path):
    a, _ = both("1.1", PHOTOS, PHOTOS)
    (tmp_path / "empty").mkdir()
    assert "no part has a result in" in fails(page, "--compare", a, tmp_path / "empty")
