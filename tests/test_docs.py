"""What the documentation says is so: its code runs, its links lead somewhere, its figures are those that were measured."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

REPO = pathlib.Path(__file__).parents[1]
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "CHANGELOG.md", *sorted((REPO / "docs").glob("*.md"))]
EXAMPLES = sorted((REPO / "examples").glob("*.py"))

MAX_EXAMPLE_LINES = 40


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(REPO).as_posix()


def python_blocks() -> list[tuple[str, str]]:
    return [
        (f"{name_of(page)}-{i}", block)
        for page in PAGES
        for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    ]


@pytest.mark.parametrize("block", [block for _, block in python_blocks()], ids=[name for name, _ in python_blocks()])
def test_python_in_the_pages_runs(block: str) -> None:
    """Whoever copies the code of a page gets no error."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "<page>", "exec"), {})
    assert printed.getvalue()


def test_readme_shows_python() -> None:
    """The README has about ten lines of code."""
    blocks = [block for name, block in python_blocks() if name.startswith("README")]
    assert len(blocks) == 1
    assert len([line for line in blocks[0].splitlines() if line]) <= 12


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_example_runs(path: pathlib.Path) -> None:
    """Every example runs as it is, warns of nothing, and is short."""
    assert len(path.read_text().splitlines()) <= MAX_EXAMPLE_LINES
    command = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    """Every relative link and picture of a page is there."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_that_are_named_exist(page: pathlib.Path) -> None:
    """A file or folder of the repository that a page names in code type is there."""
    roots = [REPO, REPO / "src" / "serverlight", REPO / "src"]
    for path in re.findall(r"`([\w.-]+/[\w./-]*)`", page.read_text()):
        if not path.startswith("site"):
            assert any((root / path).exists() for root in roots), path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_are_named_exist(page: pathlib.Path) -> None:
    """Every `serverlight` command and `make` word of a page exists."""
    from serverlight.apps.cli import app

    commands = {info.name or info.callback.__name__ for info in app.registered_commands if info.callback}
    commands |= {group.name for group in app.registered_groups if isinstance(group.name, str)}
    words = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    assert set(re.findall(r"(?:`|\$ )serverlight ([a-z]+)", text)) <= commands
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text)) <= words


def test_readme_table_is_the_measured_one() -> None:
    """Each row of the README's table has the figures of the file that its command wrote."""
    document = json.loads((REPO / "docs" / "figures" / "demo.json").read_text())
    text = (REPO / "README.md").read_text()
    rows = [line for line in text.splitlines() if re.search(r"\| [+-]\d\.\d\d \|$", line)]
    assert len(rows) == len(document["rows"])
    for line, row in zip(rows, document["rows"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == f"{row['uplink_bytes_per_request']:,.0f}"
        assert cells[4] == f"{row['server_cpu_ms_per_request']:.2f}"
        assert cells[6:8] == [f"{row['latency_ms_p50']:.1f}", f"{row['latency_ms_p95']:.1f}"]
        assert cells[8:] == [f"{100 * row['accuracy']:.2f} %", f"{row['accuracy_delta_pp']:+.2f}"]
    assert document["date"] in text
    assert document["hardware"]["cpu"] in text


def test_readme_table_of_texts_is_the_measured_one() -> None:
    """Each row of the language model's table has the figures of the file that its command wrote."""
    document = json.loads((REPO / "docs" / "figures" / "demo_lm.json").read_text())
    part = (REPO / "README.md").read_text().partition("<!-- written")[2].partition("<!-- end")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")][2:]
    assert len(rows) == len(document["rows"])
    for line, row in zip(rows, document["rows"], strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:3] == [f"{row['tokens_per_s']:.0f}", f"{row['uplink_bytes_per_token']:.1f}"]
        assert cells[4] == f"{row['server_cpu_ms_per_token']:.2f}"
        assert cells[7:] == [
            f"{row['agreement']:.1%}",
            f"{row['agreement_own_text']:.1%}",
            f"{row['same_texts']} of {row['texts']}",
        ]
    assert document["date"] in part
    assert document["hardware"]["cpu"] in part


def measured(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((REPO / "docs" / "figures" / f"{name}.json").read_text())
    assert document["date"] in (REPO / "docs" / "evaluation.md").read_text()
    return document


def cells_of(start: str) -> list[list[str]]:
    """Cells of all table rows of the page on evaluation that begin so."""
    lines = (REPO / "docs" / "evaluation.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith(f"| {start}")]


def test_tables_of_harness_tasks_are_the_measured_ones() -> None:
    """Each row of the tables of harness tasks has the figures of the files that its command wrote."""
    rows = [row for name in ("lm_eval_stories260k", "lm_eval_demo_lm") for row in measured(name)["rows"]]
    scores = [(row, score) for row in rows for score in row["scores"]]
    for cells, (row, score) in zip(cells_of("layers."), scores, strict=True):
        difference = score["difference"]
        assert cells[:3] == [row["cut"], f"{row['config']['sparsity']:g}", f"{row['bits_per_element']:.2f}"]
        assert cells[3:5] == [f"{row['uplink_bytes_per_token']:.1f}", score["metric"]]
        assert cells[7] == f"{100 * difference['value']:+.0f} ± {100 * difference['stderr']:.1f}"
        assert cells[8] == f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}"


@pytest.mark.parametrize(("name", "start"), [("eval_mobilenet", "blocks."), ("eval_minilm", "encoder.layer.")])
def test_tables_beside_the_uncut_model_are_the_measured_ones(name: str, start: str) -> None:
    """So do the rows of images and of sentences."""
    scores = [(row, score) for row in measured(name)["rows"] for score in row["scores"]]
    for cells, (row, score) in zip(cells_of(start), scores, strict=True):
        difference = score["difference"]
        assert cells[:3] == [row["cut"], f"{row['config']['sparsity']:g}", f"{row['bits_per_element']:.2f}"]
        assert cells[3:5] == [f"{row['bytes_per_sample']:,.0f}", score["metric"]]
        assert cells[5:7] == [f"{100 * score['uncut']:.2f}", f"{100 * score['cut']:.2f}"]
        assert cells[7] == f"{100 * difference['value']:+.2f}"
        assert cells[8] == f"{100 * difference['low']:+.2f} to {100 * difference['high']:+.2f}"


def test_every_page_is_in_the_navigation() -> None:
    """`make docs` shows every page, and no page that is not there."""
    listed = re.findall(r"^  - [\w ]+: (\S+\.md)$", (REPO / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in (REPO / "docs").glob("*.md"))


def test_readme_tours_eight_files() -> None:
    """The tour names eight files, all there (test_links_lead_somewhere checks that)."""
    tour = (REPO / "README.md").read_text().partition("## A tour")[2]
    assert re.findall(r"^(\d)\. ", tour, re.MULTILINE) == list("12345678")


def test_public_names_are_in_the_reference() -> None:
    """Every public class and function has its place on the reference page."""
    import serverlight as sl

    text = (REPO / "docs" / "reference.md").read_text()
    for name in sl.__all__:
        assert re.search(rf"::: serverlight\.[\w.]*\b{name}$|members: \[.*\b{name}\b", text, re.MULTILINE), name
