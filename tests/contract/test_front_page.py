"""README's picture is there, its figures are those of docs/results.md, and its links lead somewhere.

Mutations: change a figure in README's tables; rename a heading of docs/results.md; add a policy's yaml and no row; leave
out that a policy without figures is not in the bench.
"""

import re
from pathlib import Path

from PIL import Image

from polyarm.choices import options

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text()
RESULTS = (REPO / "docs" / "results.md").read_text()


def table(text, first):
    """Rows of the table whose first heading starts so, as cells without emphasis."""
    lines = text[text.index(f"| {first}") :].splitlines()
    rows = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip().replace("**", "") for cell in row.strip("|").split("|")] for row in rows]


def test_the_picture_is_a_small_loop():
    with Image.open(REPO / "docs" / "demo.gif") as gif:
        assert gif.info["loop"] == 0 and gif.n_frames > 20 and gif.size[0] <= 720
    assert (REPO / "docs" / "demo.gif").stat().st_size < 800_000 and README.index("](docs/demo.gif)") < 1500


def test_every_figure_of_a_policy_is_in_the_results():
    head, _, *rows = table(README, "[`policy=`]")
    names = [cell.strip("`") for cell in head[4:]]
    bench = RESULTS[RESULTS.index("## Every policy side by side") :]
    measured_head, _, *measured = table(bench, "policy | steps | evaluations")
    columns = [measured_head.index(name) for name in ("evaluations", "ms", *names)]
    known = {(row[0], *(row[c].partition(" ")[0] for c in columns)) for row in measured}
    for row in rows:
        if set(row[2:]) == {"—"}:  # no figures, and the row says so
            assert row[1].endswith("not in the bench yet") and not any(row[0].strip("`") == m[0] for m in measured), row
            continue
        assert (row[0].replace("`", ""), *row[2:]) in known, row
    assert {row[0].strip("`") for row in rows if "+" not in row[0]} == set(options("policy"))


def test_every_task_has_a_row():
    rows = table(README, "[`task=`]")[2:]
    assert {row[0].strip("`") for row in rows} >= set(options("task")) - {"own"}


def test_links_lead_somewhere():
    anchors = lambda text: {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}  # fmt: skip
    links = [x for x in re.findall(r"\]\(([^)]+)\)", README) if "://" not in x]
    assert len(links) > 10
    for link in links:
        file, _, anchor = link.partition("#")
        assert (REPO / file).exists(), link
        assert not anchor or anchor in anchors((REPO / file).read_text()), link
