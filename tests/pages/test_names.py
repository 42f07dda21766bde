"""Names are the user's: no sign in them is markup, a link, a formula or a part of an address, wherever it stands."""

import csv
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console, RenderableType

from stcl.commands.arena.page import page as arena_page
from stcl.commands.arena.table import RowPlan, markdown, read_table, rich_tables
from stcl.commands.check.page import rich_check
from stcl.commands.report import page
from stcl.commands.report.page import write_report
from stcl.files.plain import csv_text
from stcl.pages.markdown import code, plain
from stcl.pages.tables import compare, csv_table, html_table, markdown_table, rich_table
from stcl.terminal import plain_console, progress_bar

HOSTILE = (
    "[red]a[/b] [bold",
    "[link=file:///etc]a[/link]\\",
    ":cat: :warning:",
    "<script>alert(1)</script> &amp; <b>",
    "a | `b` | **c** _d_ ~~e~~ $f$",
    "[a](http://b.example) ![a](b.png) <http://c.example> https://d.example www.e.example",
    "# a\n\n- b\r\n| c |",
    "a\\| \\",
    "'\" onclick=x `",
)


class Words(HTMLParser):
    """Text and tags of a page."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()
        self.feed(document)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def printed(*parts: RenderableType) -> str:
    """What a console of somebody else's shows, with its markup on; lines are joined."""
    console = Console(file=io.StringIO(), width=2000)
    console.print(*parts)
    return console.file.getvalue()


def one_line(text: str) -> str:
    return " ".join(text.split())


def in_a_table(cell: str) -> Words:
    """A cell as a program renders it that is not of this project."""
    renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return Words(renderer.render(f"| a | b |\n|---|---|\n| {cell} | end |\n"))


texts = st.text(st.one_of(st.sampled_from(r"\`*_[]<>#|~&$!:./-+=()'\"{}@;"), st.sampled_from("ab 1\n\t")), max_size=12)


@settings(max_examples=300, deadline=None)
@given(texts)
@example("a_b _c_ __d__ e_")
@example("&lt; &#42; \\&amp;")
def test_markdown_shows_a_text_as_it_is(text):
    shown = in_a_table(plain(text))
    assert one_line(shown.text) == one_line(f"a b {text} end")
    assert shown.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert "\n" not in plain(text) and not re.search(r"https?://|www\.", plain(text))


@settings(max_examples=300, deadline=None)
@given(texts)
@example("``a`` `")
def test_markdown_shows_code_as_it_is(text):
    shown = in_a_table(code(text, in_table=True))
    assert one_line(shown.text) == one_line(f"a b {text if text.strip() else '–'} end")
    assert shown.tags - {"code"} == {"table", "thead", "tbody", "tr", "th", "td"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(texts, st.sampled_from(HOSTILE), st.integers(), st.floats(allow_nan=False)), min_size=1))
@example(["=1+1", "@a", "+b", "-2", "-2.5e3", "-c", "\ta", "\ra", "＝1", -3, -0.5, "+"])
def test_no_cell_of_a_table_is_a_formula(row):
    (found,) = csv.reader(io.StringIO(csv_text([row]), newline=""))
    for value, cell in zip(row, found, strict=True):
        if cell and cell[0] in "=+-@\t\r\n＝＋－＠":
            assert float(cell) == float(value)  # a number stays one
        assert cell.removeprefix("'") == re.sub("\r\n?", "\n", str(value)).removeprefix("'")


@pytest.fixture(params=HOSTILE)
def title(request: pytest.FixtureRequest) -> str:
    return request.param


def test_tables_of_a_comparison(make_run: Callable[..., Path], title: str) -> None:
    def named(document: dict[str, object]) -> None:
        document["data"] |= {"split": title, "target": title, "source": title}
        document["protocol"]["means"] = {title: [0, 1]}

    comparison = compare([make_run(frames=1, title=title, change=named)])
    shown = Words(html_table(comparison))
    assert shown.text.count(title) >= 2 and "script" not in shown.tags
    assert printed(rich_table(comparison)).count(one_line(title)) >= 2 or "\n" in title
    header, _, row = markdown_table(comparison).splitlines()
    assert plain(title) in header and row.startswith(f"| {plain(title)} |")
    (cells,) = csv.DictReader(io.StringIO(csv_table(comparison), newline=""))
    written = title.replace("\r\n", "\n")
    assert cells["title"] == written and written in cells


def test_pages_of_runs(make_run: Callable[..., Path], tmp_path: Path, title: str) -> None:
    run = make_run(frames=1, title=title, change=lambda document: document["config"].update(title=title))
    write_report([run], tmp_path / "out", title=title, summary=title, commands=[title])
    shown = Words((tmp_path / "out" / "report.html").read_text())
    assert one_line(shown.text).count(one_line(title)) >= 5 and "script" not in shown.tags
    assert not {"a", "img"} & {*Words((tmp_path / "out" / "report.html").read_text().partition("<h2")[0]).tags}


def test_tables_of_an_arena(make_run: Callable[..., Path], title: str) -> None:
    plans = {title: {title: RowPlan(title, False, {0: make_run(frames=1, title=title)})}}
    table = read_table(title, title, plans, {title: title})
    assert "script" not in Words(arena_page(table)).tags
    assert one_line(Words(arena_page(table)).text).count(one_line(title)) >= 5
    assert printed(*rich_tables(table)).count(one_line(title)) >= 2 or "\n" in title
    shown = Words(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown(table)))
    assert one_line(shown.text).count(one_line(title)) >= 5
    assert shown.tags <= {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong"}


def test_what_is_said_on_the_terminal(title: str) -> None:
    console = plain_console()
    console.file, console.width = io.StringIO(), 2000
    console.print(title)
    assert console.file.getvalue() == f"{title}\n".replace("\r", "")
    bar = progress_bar(False)
    bar.add_task(title, total=1)
    assert all(part in printed(bar.get_renderable()) for part in title.splitlines())


def test_what_a_check_says(title: str) -> None:
    facts = dict.fromkeys(("name", "split", "root", "role"), title)
    facts |= {"sizes": {title: 1}, "size": None, "labelled": None, "brightness": None, "flow_difference": None}
    domain = facts | dict.fromkeys(("sequences", "frames", "clips", "read_frames", "read_labels", "ignored"), 1)
    domain |= {"pixels": {"road": 1}, "shown_in": {}, "sampled": False, "role": "source"}
    finding = {"severity": "problem", "domain": "source", "what": title, "places": [title], "count": 1, "advice": title}
    record = {"title": title, "domains": [domain], "classes": ["road"], "findings": [finding], "ready": True}
    shown = printed(*rich_check({**record, "measurable": True}))
    assert one_line(shown).count(one_line(title)) >= 3 + ("\n" not in title)


def test_a_film_beside_the_page_is_found(make_run: Callable[..., Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(page, "EMBED_BYTES", 0)
    film = tmp_path / "50%25 #1?a=b&c 'd'.mp4"
    film.write_bytes(b"film")
    write_report([make_run(frames=1)], tmp_path, video=film)
    sources = re.findall(r'(?:href|src)="([^"]*mp4)"', (tmp_path / "report.html").read_text())
    assert len(sources) == 2
    for source in sources:
        assert not {*source} & {*" #?&'"} and unquote(source) == film.name
