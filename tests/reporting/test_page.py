import json

import pytest

from common import files
from common.errors import UserError
from common.reporting import page, results
from common.reporting.results import Findings

RUNS = [{"seed": seed, "training_seconds": 100 * (seed + 1), "history": [1, 2]} for seed in (0, 1)]
FOUND = {
    "runs": {"resnet34": {"training_seconds": 150, "runs": RUNS}},
    "relu5_3": {"relative": 0.02005, "low": None},
    "shares": [0.00323],
    "divergence": None,
}
COMMAND = (
    "python problem3_resnet36.py 3.3 3.4 --data ../shared/train --width 0.5 --out outputs/published"
)
RECORD = {
    "part": "3.4",
    "title": "trained",
    "report": "NaN",
    "truth": "f squares",
    "ours": "{problem3/3.4/relu5_3/relative:.3f}",
    "made_by": "problem3/3.4",
    "earlier": ["problem3/3.4/runs"],
}


@pytest.fixture
def published(tmp_path):
    """What is published: one part of Problem 3 and a benchmark."""
    folder = tmp_path / "published" / "problem3"
    folder.mkdir(parents=True)
    provenance = {"command": COMMAND, "call_seconds": 60}
    results.publish(folder, "3.4", Findings(FOUND), provenance)
    (tmp_path / "published" / "benchmarks").mkdir()
    files.save_json(tmp_path / "published" / "benchmarks" / "loop.json", {"over_usual": 2})
    return page.read_published(tmp_path / "published")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("no value", "no value"),
        ("{problem3/3.4/relu5_3/relative:.3f} of it", "0.020 of it"),
        ("{problem3/3.4/shares/0:.2%} of a step", "0.32 % of a step"),
        ("{problem3/3.4/runs/resnet34/runs/1/seed}", "1"),
        ("{problem3/3.4/runs/resnet34/runs:count} seeds", "2 seeds"),
        ("{problem3/3.4/provenance/call_seconds:duration}", "60 s"),
        ("{benchmarks/loop/over_usual} times", "2 times"),
        ("{problem3/3.4/relu5_3/low:.3f}", None),
        ("step {problem3/3.4/divergence/step}", None),
    ],
)
def test_references_become_their_values(published, words, text):
    assert page.fill(words, published) == text


@pytest.mark.parametrize(
    "reference",
    [
        "problem2/2.1/images",
        "problem3/3.5/images",
        "problem3/3.4/relu5_4",
        "problem3/3.4/shares/1",
        "problem3/3.4/shares/first",
        "problem3/3.4/shares/0/deeper",
    ],
)
def test_a_reference_that_leads_nowhere_is_named(published, reference):
    with pytest.raises(UserError, match=f"no {reference}"):
        page.fill(f"{{{reference}:.3f}}", published)


def test_a_format_that_does_not_suit_is_named(published):
    with pytest.raises(UserError, match=r"problem3/3\.4/shares is"):
        page.fill("{problem3/3.4/shares:.3f}", published)


def test_durations_in_words():
    shown = [page.duration(seconds) for seconds in (0.9, 89, 150, 5222, 6480)]
    assert shown == ["1 s", "89 s", "2 min", "87 min", "1.8 h"]


def test_a_published_command_is_shown_as_a_reader_types_it():
    typed = page.reader_command(COMMAND, "3.4")
    assert typed == "python problem3_resnet36.py 3.4 --data DIR --width 0.5"
    synthetic = "python problem2_flowers.py --data synthetic --ema 0.9"
    assert page.reader_command(synthetic, "2.6") == f"{synthetic[:26]} 2.6{synthetic[26:]}"


def test_a_part_takes_its_call_and_the_trainings_that_were_there(published):
    assert page.part_seconds(RECORD, published) == 60 + 100 + 200
    assert page.part_seconds({**RECORD, "earlier": []}, published) == 60


def test_the_table_of_parts(published):
    assert page.parts_table([RECORD], published)[2] == (
        "| **3.4** trained | NaN | f squares | 0.020"
        " | `python problem3_resnet36.py 3.4 --data DIR --width 0.5` | 6 min |"
    )


CLAIMS = {
    "parts": [RECORD],
    "blocks": {
        "finding": {"text": ["It is {problem3/3.4/relu5_3/relative:.2f}.", "", "Two lines."]},
        "losses": {
            "table": {
                "columns": {"loss": "$name", "low": "{problem3/3.4/$name/low:.2f}"},
                "rows": [{"name": "relu5_3"}],
            }
        },
    },
}
README = """# Title
<!-- begin parts: made by hand -->
old
<!-- end parts -->
kept
<!-- begin finding -->
<!-- end finding -->
<!-- begin losses: x -->
<!-- end losses -->
end
"""


def test_blocks_are_rewritten_and_all_else_is_kept(published):
    text = page.rewritten(README, CLAIMS, published)
    assert text.startswith(f"# Title\n<!-- begin parts: {page.MADE_BY} -->\n| part |")
    assert "old" not in text
    assert text.endswith(
        f"""<!-- end parts -->
kept
<!-- begin finding: {page.MADE_BY} -->
It is 0.02.

Two lines.
<!-- end finding -->
<!-- begin losses: {page.MADE_BY} -->
| loss | low |
| --- | --- |
| relu5_3 | - |
<!-- end losses -->
end
"""
    )
    assert page.rewritten(text, CLAIMS, published) == text


def test_a_block_that_is_in_one_place_alone_is_named(published):
    more = {**CLAIMS, "blocks": {**CLAIMS["blocks"], "speed": {"text": []}}}
    with pytest.raises(UserError, match="speed"):
        page.rewritten(README, more, published)


def test_a_null_in_a_sentence_is_refused(published):
    block = {"text": ["It is {problem3/3.4/relu5_3/low:.2f}."]}
    with pytest.raises(UserError, match="null in: It is"):
        page.make_blocks({"parts": [], "blocks": {"finding": block}}, published)


def test_the_command_writes_the_readme_or_ends_in_one_line(
    run, fails, published, tmp_path, monkeypatch
):
    for name, text in {"README": README, "CLAIMS": json.dumps(CLAIMS)}.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(page, name, tmp_path / name)
    monkeypatch.setattr(page, "PUBLISHED", tmp_path / "published")
    assert run(page, "--readme")[0] == 0
    written = (tmp_path / "README").read_text()
    assert written == page.rewritten(README, CLAIMS, published)
    (tmp_path / "CLAIMS").write_text(json.dumps(CLAIMS).replace("relu5_3/relative", "relu5_4"))
    assert "no problem3/3.4/relu5_4" in fails(page, "--readme")
    assert (tmp_path / "README").read_text() == written
    assert "--readme" in fails(page)
