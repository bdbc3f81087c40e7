import pytest
from jinja2 import Environment, StrictUndefined, UndefinedError

from common.reporting import html, page, results


def fill(words, **values):
    pages = Environment(undefined=StrictUndefined)  # noqa: S701 Markdown
    pages.filters |= page.FILTERS
    return pages.from_string(words).render(values)


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
