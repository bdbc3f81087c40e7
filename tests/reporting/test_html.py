import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from common.reporting import html, html_charts, results
from common.reporting.html import shown
from common.reporting.page import PUBLISHED
from common.reporting.results import Findings

PARTS = [claim["part"] for claim in html.CLAIMS]
ABOUT = {"call_seconds": 60, "command": "python x.py", "data": "D", "seed": 0, "git_commit": "a1"}


class Page(HTMLParser):
    """The texts, the exact values (data-v), the headings and the tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.exact, self.headings, self.tags = set(), set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.exact |= {dict(attrs).get("data-v")}
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_data(self, data):
        self.texts.add(data.strip())


def leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list) and "{" in json.dumps(value):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def publish(out, folder, part, result, **about):
    results.publish(out / folder, part, Findings(result), {**ABOUT, **about})


@pytest.fixture
def out(tmp_path):
    for name in ("problem1", "problem2", "problem3"):
        (tmp_path / name).mkdir()
    return tmp_path


def lacks(page, result):
    missing = []
    for value in leaves(result):
        text = shown(value)
        there = text in page.texts and (text == str(value) or str(value) in page.exact)
        if not (there or (isinstance(value, (list, str, bool, type(None))) and text in page.texts)):
            missing.append(value)
    return missing


@pytest.fixture(scope="module")
def published():
    """The HTML of the published runs' page, without its pictures."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(html, "picture", lambda _: "data:image/webp;base64,")
        return html.render(PUBLISHED)


def test_the_published_page_is_that_of_the_published_results(published):
    kept = (PUBLISHED / "report.html").read_text("utf-8")
    kept = re.sub('(data:image/webp;base64,)[^"]+', r"\1", kept)
    assert published == kept, "python -m common.reporting.page"


def test_every_published_value_is_in_its_page(published):
    page = Page(published)
    for path in PUBLISHED.glob("**/results.json"):
        for part, result in results.read(path.parent)["parts"].items():
            if part in PARTS:
                result.pop("provenance")
                assert lacks(page, result) == [], (path, part)
    assert lacks(page, {"x": 987.25}) == [987.25]  # the check is able to fail


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (20308150, "20,308,150"),
        (0.02004857, "0.02005"),
        (5.5e17, "5.5e+17"),
        (123456.7, "123,457"),
        (1e-5, "1e-05"),
        (0.0, "0"),
        (None, "\N{EN DASH}"),
        ([1, None], "1, \N{EN DASH}"),
        ([[667, 500], [1]], "667, 500; 1"),
        (True, "yes"),
        ("a\u202eb\0", "a\\u202eb\\x00"),
    ],
)
def test_values_as_a_reader_sees_them(value, text):
    assert shown(value) == text


def test_a_strangers_names_stay_text(out):
    bad = "</script><script>alert(1)</script>"
    runs = {bad: {"test_top1": 1.0, "runs": [{"history": [epoch(1, 1.0)]}]}}
    runs["other"] = {"test_top1": 2.0}
    publish(out, "problem2", "2.5", {"runs": runs}, data=bad, command=bad)
    text = html.render(out)
    assert "alert(1)" in text
    assert bad not in text


def test_nothing_run_says_so_with_the_commands(tmp_path):
    text = html.render(tmp_path)
    assert text.count("Not run yet.") == len(PARTS) == 13
    for claim in html.CLAIMS:
        assert f"<code>{claim['command']}</code>" in text


def test_a_damaged_result_is_named_and_the_others_are_shown(out):
    publish(out, "problem1", "1.1", {"shift_px": 1})
    (out / "problem2" / "results.json").write_text("{")
    text = html.render(out)
    assert "problem2/results.json" in text
    assert text.count("Not run yet.") == 12


def test_badges_name_what_a_reader_has_to_know(out):
    recipe = {"image_size_px": 64}
    about = {"data": "EMBEDDED DRAWN FLOWERS", "weights_source": "random (seed 0)"}
    about |= {"git_commit": "a1+changes", "left_out": ["x"]}
    publish(out, "problem3", "3.4", {"width": 0.5, "recipe": recipe}, **about)
    (run,) = html.read_runs(out)[0]["3.4"]
    assert run.badges == [
        *("embedded data", "random weights", "width 0.5", "images of 64 px"),
        *("some images left out", "uncommitted changes"),
    ]
    publish(out, "problem3", "3.4", {"width": 1.0, "recipe": {"image_size_px": 224}})
    assert html.read_runs(out)[0]["3.4"][0].badges == []


def test_each_prediction_is_a_picture_with_its_kind(out):
    drawn = Image.new("RGB", (4, 3)).save
    names = [f"2.6_{kind}.png" for kind in ("right", "right_1", "right_2", "wrong", "faithfulness")]
    figures = {name: lambda path: drawn(path, "PNG") for name in names}
    results.publish(out / "problem2", "2.6", Findings({"maps": 3}, figures=figures), ABOUT)
    shown = [attrs["data-kind"] for tag, attrs in Page(html.render(out)).tags
             if tag == "figure" and attrs["class"] == "picture"]  # fmt: skip
    # If each picture has its own figure, the page leaves out the figure of them all.
    assert shown == ["faithfulness", "right", "right", "wrong"]


def test_the_page_stands_alone_and_is_in_order(published):
    assert not re.search(
        r"""(src|href)=["']?(https?:)?//|url\(["']?http|@import|<link rel="style""", published
    )
    assert len(published) < 5e6
    page = Page(published)
    assert page.headings[0] == 1
    assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) > 10
    assert all(len(attrs["alt"]) > 60 for attrs in pictures)


def test_sizes_of_the_parts_of_the_page():
    assert len((html.HERE / "templates" / "report.js").read_text().splitlines()) <= 200
    assert len((html.HERE / "html.py").read_text().splitlines()) <= 250


def epoch(number, loss):
    both = {f"{split}_{key}": loss for split in ("train", "val") for key in ("loss", "top1")}
    return {"epoch": number, **both}


def test_curves_are_means_over_seeds_with_vals_range():
    runs = [[epoch(1, 1.0), epoch(2, None)], [epoch(1, 3.0)]]
    result = {"runs": {"wide_1.1": {"runs": [{"history": rows} for rows in runs]}}}
    loss, _ = html_charts.curves(result)
    val, train = loss["series"]
    assert loss["x"] == [1, 2]
    assert val == {
        **{"label": "1.1 times as wide, val", "values": [2.0, None]},
        **{"low": [1.0, None], "high": [3.0, None]},
    }
    assert train["dash"] is True
    assert loss["top"] == pytest.approx(2.6)
    assert html_charts.curves({"runs": {"x": {"runs": [{"history": []}]}}}) == []


def test_the_doctors_chart_has_a_frame_a_step(tmp_path):
    blocks = {"maxpool": {"peak": 2.0}, "fc": {"peak": None}}
    other = {"maxpool": {"peak": 2.0}, "layer1.0": {"peak": 1.0}, "fc": {"peak": 0.0}}
    result = {"forecast": {"resnet36_sum": {"blocks": blocks}, "resnet34": {"blocks": other}}}
    (tmp_path / "3.4_doctor_resnet36_sum.csv").write_text(
        "step,module,direction,peak,non_finite\n"
        "1,maxpool,output,5,0\n1,maxpool,gradient,6,0\n1,fc,output,7,1\n1,bn1,output,8,0\n"
    )
    (chart,) = html_charts.doctor(result, tmp_path)
    assert chart["names"] == ["maxpool", "fc"]
    assert [line["label"] for line in chart["series"]] == ["f after the sums"]
    top = html_charts.NOT_FINITE
    assert [frame["values"] for frame in chart["frames"]] == [[[2.0, top]], [[5.0, top]]]
    assert chart["frames"][1]["name"] == "step 1"


def test_results_of_versions_without_doses_of_their_own_for_random_weights_are_drawn():
    row = {key: [0, 0.1, 0.2] for key in ("relative", "low", "high")}
    losses = {"relu5_3": {"shift": row, "noise": row}}
    doses = {"shift_px": [0, 1, 2], "sigma": [0, 5, 9]}
    curves = {**doses, "weights": losses, "random_weights": losses}
    x = [chart["x"] for chart in html_charts.dose_response({"curves": curves})]
    assert x[2:] == [[1, 2], [5, 9]]
