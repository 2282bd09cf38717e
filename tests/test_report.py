import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from xai_lib import claims, config, notebooks, records, report, verify
from xai_lib.cli import app
from xai_lib.cli.report import report as report_command
from xai_lib.report import notebook_page, pages, strips
from xai_lib.results import Estimate, Figure, Verdict

EVIL = '<script>alert("x")</script>'
STUDY = "03_ultrasound_cam_pointing_game"


def make_record(data="busi", seed=0, claim="3.1", outcome="does not hold", **more):
    figures = {
        "auc_mass": Figure(Estimate(0.8, 0.7, 0.9, "bootstrap"), baselines={"chance": Estimate(0.5)}),
        "auc_twin": Figure(Estimate(0.6, 0.5, 0.7, "bootstrap"), note=EVIL),
        "gap": Figure(Estimate(float("nan")), unit="mm"),
    }
    verdict = Verdict(claim, outcome, f"because {EVIL}", "the rule", Estimate(0.8, 0.7, 0.9), Estimate(0.5))
    values = {
        "study": STUDY,
        "title": "A tiny study",
        "profile": "lab",
        "parameters": {"backbone": "resnet10", "text": EVIL},
        "seed": seed,
        "data": {"name": data, "fingerprint": "f" * 64},
        "figures": figures,
        "verdicts": {claim: verdict},
        "command": f"xai-lib run 03 {EVIL}",
        "started": time.perf_counter(),
    }
    return records.make(**values | more)


class Links(HTMLParser):
    """Addresses that a page asks for (`loaded`) or leads to (`followed`), and its ids."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.followed, self.ids, self.images = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.images += [found] if tag == "img" else []
        self.loaded += [found["src"]] if "src" in found else []
        if "href" in found:
            (self.followed if tag == "a" else self.loaded).append(found["href"])


def broken_links(site):
    """Local addresses in the pages of a site that lead nowhere, as "page: address"."""
    parsed = {page.name: Links(page.read_text()) for page in site.glob("*.html")}
    broken = []
    for name, page in parsed.items():
        for address in page.loaded + page.followed:
            if address.startswith(("data:", "https://", "http://")):
                continue
            path, _, anchor = unquote(address).partition("#")
            path = path.partition("?")[0]
            there = (site / path).is_file() if path else True
            if not there or (anchor and anchor not in parsed[path or name].ids):
                broken.append(f"{name}: {address}")
    return broken


@pytest.fixture
def small(tmp_path, monkeypatch, write_notebook):
    """A folder of one notebook, and folders of results and committed records; builds a report of them."""
    for name in ("notebooks", "results", "committed", "docs"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(notebooks, "notebooks_dir", lambda: tmp_path / "notebooks")
    monkeypatch.setattr(notebook_page, "notebooks_dir", lambda: tmp_path / "notebooks")
    write_notebook(tmp_path / "notebooks" / f"{STUDY}.ipynb", "x = 1", title="A tiny study")
    return tmp_path


def build(folder, out="site"):
    return report.build(folder / out, folder / "results", folder / "committed")


def write(folder, record, name="a"):
    return records.write(record, folder / "committed" / f"{name}.record.json")


def test_a_record_is_shown_with_its_figures_baselines_verdict_and_provenance(small):
    write(small, make_record())
    site = build(small)
    assert site.records == 1 and site.problems == [] and site.size > 0
    page = (site.folder / f"{STUDY}.html").read_text()
    for text in ("0.800 [0.700, 0.900]", "chance", "0.500", "not defined", "f" * 64, "busi, resnet10", "real data"):
        assert text in page, text
    assert "committed" in page and "python" in page and "none: trained in the run" in page
    index = (site.folder / "index.html").read_text()
    assert re.search(r'<tr data-verdict="does not hold">', index)
    assert index.count("<tr data-verdict=") == len(claims.load())  # every other claim has one row without a run
    assert (site.folder / f"notebook-{STUDY}.html").is_file()


def test_text_of_a_record_is_escaped(small):
    write(small, make_record())
    for page in build(small).folder.glob("*.html"):
        assert "<script>alert" not in page.read_text(), page.name
    assert "&lt;script&gt;alert" in (small / "site" / f"{STUDY}.html").read_text()


def test_links_resolve_and_nothing_is_loaded_from_a_network(small):
    write(small, make_record())
    write(small, make_record("synthetic_ultrasound"), "b")
    folder = build(small).folder
    assert broken_links(folder) == []
    for page in folder.glob("*.html"):
        assert not [a for a in Links(page.read_text()).loaded if a.startswith(("http", "//"))], page.name
        assert all(image.get("alt") for image in Links(page.read_text()).images), page.name
    assert "url(" not in (folder / "assets" / "style.css").read_text()


def test_a_broken_link_would_be_seen(small):
    write(small, make_record())
    folder = build(small).folder
    (folder / "index.html").write_text((folder / "index.html").read_text() + '<a href="no.html"></a><a href="#no"></a>')
    assert broken_links(folder) == ["index.html: no.html", "index.html: #no"]


def test_the_same_input_gives_the_same_files(small):
    write(small, make_record())
    Image.fromarray(np.arange(200**2, dtype=np.uint32).astype(np.uint8).reshape(200, 200)).save(
        small / "docs" / "a.png"
    )
    first, second = build(small, "one").folder, build(small, "two").folder
    names = [p.relative_to(first) for p in sorted(first.rglob("*")) if p.is_file()]
    assert names == [p.relative_to(second) for p in sorted(second.rglob("*")) if p.is_file()]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_record_that_cannot_be_read_is_named_and_the_rest_is_built(small):
    write(small, make_record())
    (small / "committed" / "broken.record.json").write_text("{")
    write(small, make_record(claim="99.9"), "unknown")
    site = build(small)
    assert site.records == 1 and len(site.problems) == 2
    index = (site.folder / "index.html").read_text()
    assert "broken.record.json: is not JSON" in index and "judges the unknown claim 99.9" in index


def test_a_notebook_that_cannot_be_read_is_named_and_the_rest_is_built(small):
    write(small, make_record())
    (small / "results" / STUDY).mkdir()
    (small / "results" / STUDY / f"{STUDY}.ipynb").write_text("{")
    site = build(small)
    assert len(site.problems) == 1 and f"{STUDY}.ipynb: cannot be read" in site.problems[0]
    assert broken_links(site.folder) == []


def test_an_earlier_report_is_replaced_and_another_folder_is_not(small):
    write(small, make_record())
    (build(small).folder / "stale.html").touch()
    assert not (build(small).folder / "stale.html").exists()
    (small / "mine").mkdir()
    (small / "mine" / "index.html").write_text("my own page")
    with pytest.raises(ValueError, match="mine holds other files than a report"):
        build(small, "mine")
    assert (small / "mine" / "index.html").read_text() == "my own page"
    assert not [p for p in small.iterdir() if p.name.startswith(".")]


def test_a_failed_build_leaves_the_earlier_report(small, monkeypatch):
    write(small, make_record())
    before = (build(small).folder / "index.html").read_text()
    monkeypatch.setattr(report, "_assets", lambda folder: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        build(small)
    assert (small / "site" / "index.html").read_text() == before
    assert not [p for p in small.iterdir() if p.name.startswith(".")]


def test_a_fresh_run_is_shown_with_its_executed_notebook_and_figures(small, write_notebook):
    folder = small / "results" / STUDY
    (folder / "figures").mkdir(parents=True)
    write_notebook(folder / f"{STUDY}.ipynb", "y = 'executed'", title="A tiny study")
    Image.new("RGB", (1000, 500), "red").save(folder / "figures" / "fig2_hits.png")
    sha = notebooks.read_notebook(small / "notebooks" / f"{STUDY}.ipynb").sha256
    records.write(make_record(notebook_sha256=sha), folder / f"{STUDY}.record.json")
    write(small, make_record("synthetic_ultrasound", notebook_sha256="0" * 64))
    site = build(small)
    page = (site.folder / f"{STUDY}.html").read_text()
    assert page.count("made with an older notebook") == 1 and ">fresh<" in page
    assert page.index('id="run-03') < page.index('id="run-a"')  # the fresh one first
    assert "Fig 2 hits" in page and (site.folder / "figures" / STUDY / "fig2_hits.png").is_file()
    with Image.open(site.folder / "figures" / STUDY / "small" / "fig2_hits.webp") as thumb:
        assert thumb.size == (480, 240)
    text = (site.folder / f"notebook-{STUDY}.html").read_text()
    assert "executed" in text and "as it was run last" in text


def test_a_copy_of_a_record_is_shown_once(small):
    record = make_record()
    write(small, record, "a"), write(small, record, "b")
    assert build(small).records == 1


def test_labels_name_what_differs():
    same = [make_record(seed=0), make_record(seed=1), make_record("breast"), make_record("breast")]
    assert pages.run_labels(same)[:2] == ["busi, resnet10, seed 0", "busi, resnet10, seed 1"]
    assert pages.run_labels(same)[2:] == ["breast, resnet10", "breast, resnet10-2"]


def test_the_rows_are_those_of_the_ledger():
    paths = verify.find_records(config.repository_dir() / "data" / "records")
    runs, problems = pages.read_runs(paths, [])
    known = claims.load()
    ours = [(name, row.verdict) for name, rows in pages.ledger_by_claim(known, runs).items() for row in rows]
    ledger = claims.ledger([run.record for run in runs], known)
    assert problems == [] and ours == list(zip(ledger["id"], ledger["verdict"], strict=True))
    totals = pages.verdict_totals(pages.ledger_by_claim(known, runs))
    assert sum(totals.values()) == len(ledger)
    assert totals["holds"] == (ledger["verdict"] == "holds").sum()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2, 0.9], (0.0, 1.0)),
        ([0.03, 0.09], (0.0, 0.1)),
        ([-0.3, 0.1], (-0.3, 0.1)),
        ([12.0, 87.0, float("nan")], (0.0, 100.0)),
        ([], (0.0, 1.0)),
        ([0.0], (0.0, 1.0)),
    ],
)
def test_a_scale_has_round_ends_and_holds_every_value(values, expected):
    assert strips.limits(values) == pytest.approx(expected)


def test_figures_share_a_scale_where_their_units_agree():
    figures = {
        "auc_mass": Figure(Estimate(0.8, 0.7, 0.9), baselines={"chance": Estimate(0.5)}),
        "auc_twin": Figure(Estimate(0.6)),
        "change": Figure(Estimate(-0.2, -0.3, 0.1)),
        "error": Figure(Estimate(2.0), unit="mm"),
        "other": Figure(Estimate(float("nan")), unit="mm"),
    }
    found = strips.groups(
        [("run", make_record(figures=figures)), ("more", make_record(figures={"change": Figure(Estimate(0))}))]
    )
    assert [list(group.rows) for group in found] == [["auc_mass", "auc_twin"], ["change"], ["error", "other"]]
    bar = found[0].rows["auc_mass"][0]
    assert (bar.at, bar.span, bar.marks) == (80.0, (70.0, 90.0), [("chance", 50.0)])
    assert found[1].zero == pytest.approx(75.0) and [b.at for b in found[1].rows["change"]] == [25.0, 75.0]
    assert found[2].rows["other"][0].at is None and found[0].zero is None


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Estimate(0.5, 0.0612, 0.7), "0.500 [0.061, 0.700]"),
        (Estimate(0.00354, 0.00337, 0.00368), "0.00354 [0.00337, 0.00368]"),
        (Estimate(123.45, 98.7, 150.0), "123.5 [98.7, 150.0]"),
        (Estimate(0.0), "0.000"),
        (Estimate(float("nan")), "not defined"),
        (Estimate(0.5, float("nan"), float("nan")), "0.500"),
    ],
)
def test_numbers_are_written_with_the_digits_of_the_largest(found, text):
    assert strips.estimate(found) == text


def write_cells(path, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


def test_formulas_are_drawn_and_code_is_left_alone(tmp_path):
    text = "Let $y_c = \\gamma_c$ and `$code$`, 5 $ a piece.\n\n$$\\sum_i x_i$$\n\n$\\nonsense{x}$"
    body = notebook_page.notebook_html(write_cells(tmp_path / "a.ipynb", nbformat.v4.new_markdown_cell(text)), {})
    assert body.count("<svg") == 2 and 'aria-label="y_c = \\gamma_c"' in body and "formula block" in body
    assert "<code>$code$</code>" in body and "5 $ a piece" in body
    assert '<code class="formula">\\nonsense{x}</code>' in body and "FORMULA" not in body


def test_formulas_lie_on_the_line_of_the_text():
    sizes = [re.search(r"height:([\d.]+)em;vertical-align:(-?[\d.]+)em", notebook_page.formula_html(t)) for t in "xg"]
    (_, x_depth), (_, g_depth) = [(float(m[1]), float(m[2])) for m in sizes]
    assert x_depth > g_depth and -0.1 < x_depth <= 0 and -0.4 < g_depth < -0.1
    drawn = notebook_page.formula_html("g")
    box = float(re.search(r'viewBox="0 0 \d+ (\d+)"', drawn)[1])
    rows = [float(n) for n in re.findall(r"-?\d+", re.search(r' d="([^"]+)"', drawn)[1])[1::2]]
    assert -2 <= min(rows) and max(rows) <= box + 2


def test_scripts_and_widgets_of_outputs_are_dropped_and_images_described(tmp_path):
    html = nbformat.v4.new_output("display_data", {"text/html": f"<style>x</style><table><td>cell</td></table>{EVIL}"})
    widget = nbformat.v4.new_output(
        "display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "HBox"}
    )
    script = nbformat.v4.new_output("display_data", {"application/javascript": "alert(2)"})
    image = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
    code = nbformat.v4.new_code_cell("1", outputs=[html, widget, script, image])
    path = write_cells(tmp_path / "a.ipynb", nbformat.v4.new_markdown_cell("## Results `x`\n\n" + EVIL), code)
    body = notebook_page.notebook_html(path, {})
    assert "<script" not in body and "<style" not in body and "HBox" not in body and "<td>cell</td>" in body
    assert 'alt="Figure of the section: Results x"' in body
    assert [(p.name, p.alt) for p in notebook_page.notebook_pictures(path)] == [("output-01.png", "Results x")]


def test_links_lead_to_pages_and_images_of_the_text_are_embedded(small):
    Image.new("RGB", (8, 8)).save(small / "docs" / "a.png")
    text = "[two](02_x.ipynb#part) [gone](../src/x.py) [web](https://doi.org/1) "
    text += "![a picture](../docs/a.png) ![lost](no.png)"
    path = write_cells(small / "x.ipynb", nbformat.v4.new_markdown_cell(text))
    body = notebook_page.notebook_html(path, {"02_x.ipynb": "two.html"})
    found = Links(body)
    assert [a for a in found.followed if not a.startswith("#")] == ["two.html#part", "https://doi.org/1"]
    assert len(found.images) == 1 and found.images[0]["src"].startswith("data:image/png;base64,")
    assert found.images[0]["alt"] == "a picture" and "gone" in body and "lost" in body
    lead = notebook_page.lead_picture(path)
    assert lead is not None and (lead.name, lead.alt) == ("a.png", "a picture")


def test_the_command_names_problems_and_exits_with_1(small, monkeypatch):
    monkeypatch.setattr(config, "output_dir", lambda folder=None: Path(folder or small / "results"))
    if "report" not in {command.name for command in app.registered_commands}:
        app.command("report")(report_command)
    (small / "results" / "x.record.json").write_text(json.dumps({"schema": 0}))
    done = CliRunner().invoke(app, ["report"])
    assert done.exit_code == 1 and "x.record.json: schema: is 0" in done.stdout
    assert (small / "results" / "report" / "index.html").is_file()
    (small / "results" / "x.record.json").unlink()
    done = CliRunner().invoke(app, ["report", "--records", str(small / "results"), "--out", str(small / "other")])
    assert done.exit_code == 0 and "index.html" in done.stdout and (small / "other" / "index.html").is_file()
