"""A bench trains its entries with one budget, judges all points on the same seeds, and does nothing twice.

Mutations that turn it red: train again what is there; judge an entry on other seeds; leave the mixtures out; write results
without holding the folder.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from polyarm.bench import bench, table
from polyarm.bench.plan import points
from polyarm.bench.results import read, write
from polyarm.spec import UserError


def small(out, *more):
    body = "policy.body.width=16,policy.body.blocks=1"
    return bench("policies", [
        f"output_dir={out}", "core_seconds=0.2", "episodes=2", "tasks=[pick_place]", "workers=2",
        "tasks.pick_place.settings=[task=pick_place,collect.episodes=5,collect.workers=1,train.batch_size=16,data.val_ratio=0]",
        f"entries.flow.settings=[policy=flow,{body}]", f"entries.ebt.settings=[policy=ebt,{body}]",
        "entries.ebt.sweep={policy.descent.act_steps: [1, 2]}", *more,
    ])  # fmt: skip


@pytest.mark.slow
def test_a_bench_from_nothing_and_again(tmp_path, capsys):
    rows = small(tmp_path, "only=[flow]")["rows"]
    assert [r["settings"] for r in rows] == [[f"policy.sampler.angles.steps={n}"] for n in (1, 2, 5, 10)]
    assert [r["evaluations"] for r in rows] == [1, 2, 5, 10]
    assert all(r["seeds"] == [300000, 300001] and r["ms"] > 0 and r["steps"] == rows[0]["steps"] for r in rows)
    more = small(tmp_path, "only=[flow, ebt]")["rows"]
    assert [r for r in more if r["name"] == "flow"] == rows  # nothing was done again: stamps and times are the same
    # an inner step of an energy counts three, and the energy of the chunk one more
    assert [r["evaluations"] for r in more if r["name"] == "ebt"] == [4, 7]
    with pytest.raises(
        UserError, match=r"flow was trained with core_seconds=0\.2, now it is 0\.4: give another output_dir"
    ):
        small(tmp_path, "only=[flow]", "core_seconds=0.4")
    mixed = [r for r in more if len(r["runs"]) == 2]
    assert [r["name"] for r in mixed] == ["flow + ebt"] and mixed[0]["evaluations"] == 10 * (1 + 2 * 3)
    assert json.loads((tmp_path / "results.json").read_text())["rows"]
    assert (tmp_path / "table.md").read_text() == table(more)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("polices", [], "unknown bench 'polices': did you mean 'policies'"),
        ("policies", ["only=[flw]"], "unknown entry of this bench 'flw': did you mean 'flow'"),
        ("policies", ["tasks=[pick]"], "unknown task of this bench 'pick'"),
        ("policies", ["corseconds=3"], "unknown setting 'corseconds': did you mean 'core_seconds'"),
        ("policies", ["core_seconds=0"], "core_seconds=0: give a number above 0"),
    ],
)
def test_what_a_bench_refuses(tmp_path, name, words, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        bench(name, [f"output_dir={tmp_path}", *words])


def test_entries_that_share_a_name_are_points_of_their_own():
    two, four = (
        point for entry, x in (("stacked_2", 2), ("stacked_4", 4))
        for point in points("recall", entry, {"group": "frames stacked", "x": x, "settings": []}, Path("out"))
    )  # fmt: skip
    assert two.name == four.name == "frames stacked" and two.key != four.key and (two.x, four.x) == (2, 4)


def test_benches_that_write_at_once_lose_no_row(tmp_path):
    """Four processes, each adding its rows one by one to the same results.json."""
    code = (
        "import sys; from pathlib import Path; from polyarm.bench.results import write\n"
        "for i in range(25): write(Path(sys.argv[1]), {f'{sys.argv[2]} {i}': {'key': f'{sys.argv[2]} {i}'}})"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(k)]) for k in range(4)]
    assert [p.wait() for p in running] == [0] * 4
    assert set(read(tmp_path)) == {f"{k} {i}" for k in range(4) for i in range(25)}
    write(tmp_path, {"0 0": {"key": "0 0", "n": 1}})
    assert len(read(tmp_path)) == 100 and read(tmp_path)["0 0"]["n"] == 1
