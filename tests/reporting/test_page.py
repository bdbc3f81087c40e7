import pytest
from jinja2 import Environment, StrictUndefined, UndefinedError

from common.reporting import html, page, results


def fill(words, **values):
    pages = Environment(undefined=StrictUndefined)  # noqa: S701 Markdown
    pages.filters |= page.FILTERS
    return pages.from_string(words).render(values)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("{{ row | interval }}", "2.2 (1.9 to 2.5)"),
        ("{{ run | interval(2) }}", "15.40 (14.52 to 16.32)"),
        ("{{ less | points }}", "-0.3 (-2.0 to +1.4)"),
        ("{{ 20308150 | number }}", "20,308,150"),
        ("{{ 0.0204 | number(3) }}", "0.020"),
        ("{{ 89 | duration }}, {{ 150 | duration }}, {{ 6480 | duration }}", "89 s, 2 min, 1.8 h"),
    ],
)
def test_filters_show_values(words, text):
    row = {"sigma": 2.2, "low": 1.9, "high": 2.5}
    run = {"test_top1": 15.4, "test_top1_low": 14.52, "test_top1_high": 16.32}
    assert fill(words, row=row, run=run, less={"mean": -0.3, "low": -2, "high": 1.4}) == text


def test_a_value_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(UndefinedError, match="relu5_4"):
        fill("{{ losses.relu5_4 | interval }}", losses={})
    with pytest.raises(TypeError):  # null in results.json
        fill("{{ losses.low | number }}", losses={"low": None})
    monkeypatch.setattr(page, "PUBLISHED", tmp_path)
    with pytest.raises(UndefinedError):  # a part that was not published
        fill("{{ part.losses }}", part=page.part("1.3"))


def test_the_command_renders_every_page(run, fails, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    for folder in page.PAGES.values():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert run(page)[0] == 0
    for name, folder in page.PAGES.items():
        assert (tmp_path / folder / "README.md").read_text() == page.render(name)
    for folder in ("outputs", "outputs/published"):
        assert "Nothing has been run yet" in (tmp_path / folder / "report.html").read_text()
    assert "--wrong" in fails(page, "--wrong")


def test_every_claim_has_a_verdict_and_the_result_that_shows_it():
    for claim in html.CLAIMS:
        assert claim.keys() == {
            *("part", "question", "title", "printed", "true", "verdict", "cause", "key"),
            *("command", "trains"),
        }
        names = claim["key"].split("/")
        depth = next(n for n, name in enumerate(names) if name[1:2] == ".")
        value = page.part(names[depth], "/".join(names[:depth]))
        for name in names[depth + 1 :]:
            value = value[int(name) if isinstance(value, list) else name]
        assert value is not None
