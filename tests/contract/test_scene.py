"""The view that turns shows the points of `lift`, where cameras stand and look, and a wrong extrinsic; `polyarm data show` writes it.

Mutations that turn it red: base_from_camera used as its inverse; the picture's colours of another pixel; corners of the picture in
another order; uint16 that wrap; a script of another hash; text put into the page unescaped; a sentence left out.
"""

import base64
import hashlib
import json
import re
import subprocess
from inspect import unwrap
from shutil import which

import numpy as np
import pytest
from omegaconf import OmegaConf

from polyarm.camera import lift, project
from polyarm.cli import main
from polyarm.datasets.arrays import write_store
from polyarm.datasets.store import Store, open_store
from polyarm.eval.page import text
from polyarm.eval.report import write_report
from polyarm.eval.run import demonstrations, look, workspace
from polyarm.eval.scene import POINTS, has_scene, moment, scene
from polyarm.eval.turning import nice, view, write_look
from polyarm.spec import ObsSpace, Stream, UserError
from polyarm.streams import points
from tests import rgbd
from tests.contract.test_report import HOSTILE, Page, result
from tests.contract.test_seen import Nested, Whole

OPEN = "polyarm.datasets.store.open_store"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return rgbd.write(tmp_path_factory.mktemp("scene") / "right.zarr", episodes=2, n=64)


def drawn(page):
    """What the script of a page draws, from its one canvas."""
    data = json.loads(page.one("canvas")["data-scene"])
    place = lambda x: data["low"] + data["step"] * np.frombuffer(base64.b64decode(x), "<u2").reshape(-1, 3)
    for m in data["moments"]:
        m["seen"] = [place(x) for x in m["seen"]]
        for c in m["cameras"]:
            c["xyz"], c["rgb"] = place(c["xyz"]), np.frombuffer(base64.b64decode(c["rgb"]), np.uint8).reshape(-1, 3)
    return data | {"path": place(data["path"])}


def shown(tmp_path, store, **more):
    write_look(tmp_path / "p.html", "demos", scene(open_store(store), **more))
    return Page(tmp_path / "p.html")


def test_the_points_of_the_page_are_those_that_training_lifts(tmp_path, store):
    """To half a step of what they are written in, with the colours of their pixels, at each moment."""
    data, demos = drawn(shown(tmp_path, store)), open_store(store)
    assert data["step"] < 2e-4 and len(data["moments"]) == 3
    for row, m in zip((0, 2, 4), data["moments"], strict=True):
        assert sum(len(c["xyz"]) for c in m["cameras"]) > POINTS / 2
        for c in m["cameras"]:
            pose = rgbd.looking(*rgbd.EYES[c["name"]], roll=0)
            xyz = lift(demos.read(f"{c['name']}_depth")[row], "mm", rgbd.K, pose)
            pixel, depth = project(c["xyz"], rgbd.K, pose)
            v, u = np.floor(pixel.T[::-1]).astype(int)
            assert np.abs(c["xyz"] - xyz[v, u]).max() < 0.51 * data["step"] + 1e-6 and (depth > 0).all()
            assert np.array_equal(c["rgb"], demos.read(c["name"])[row][v, u])
        cloud = demos.read("cloud")[row, :, :3]
        assert np.abs(np.sort(m["seen"][0], 0) - np.sort(cloud, 0)).max() < 0.51 * data["step"] + 1e-6
        assert m["tip"] == pytest.approx(demos.read("tip")[row], abs=1e-4)
    assert np.abs(data["path"] - demos.read("tip")[:5]).max() < 0.51 * data["step"] + 1e-6


def test_a_camera_stands_and_looks_where_its_calibration_says(tmp_path, store):
    """Its corners are seen in the corners of its picture; the facts say the same in words."""
    page = shown(tmp_path, store)
    h, w = rgbd.SIZE
    for c in drawn(page)["moments"][0]["cameras"]:
        pose = rgbd.looking(*rgbd.EYES[c["name"]], roll=0)
        assert c["eye"] == pytest.approx(rgbd.EYES[c["name"]][0], abs=1e-4)
        pixel, depth = project(np.array(c["corners"]), rgbd.K, pose)
        assert np.abs(pixel - [[0, 0], [w, 0], [w, h], [0, h]]).max() < 0.1 and (depth > 0).all()
    cells = [e["text"] for e in page.all("td")]
    (x, y), angle = (0.5 + 0.05 / 0.6 * -0.65, -0.35 / 0.6 * 0.05), np.degrees(2 * np.arctan2(40, 70))
    assert cells[:4] == ["front", "1.150, 0.350, 0.650", f"{x:.3f}, {y:.3f}", f"{angle:.0f}°"]
    assert cells[4] == "100.0 %" and cells[5] == "0.000 to 0.200"


def tilt(xyz):
    """Degrees between the plane that most points lie near, here the table, and z = 0."""
    for _ in range(20):
        fit = np.linalg.lstsq(np.column_stack([xyz[:, :2], np.ones(len(xyz))]), xyz[:, 2], rcond=None)[0]
        off = np.abs(xyz @ [fit[0], fit[1], -1] + fit[2])
        xyz = xyz[off <= max(np.quantile(off, 0.9), 1e-3)]
    return np.degrees(np.arctan(np.hypot(*fit[:2])))


def test_a_wrong_extrinsic_tilts_the_table(tmp_path, store):
    """By what it is wrong, in the points that are drawn and in the numbers beside them."""
    wrong = rgbd.write(tmp_path / "wrong.zarr", said=lambda row: rgbd.turned(row, 10))
    right, off = drawn(shown(tmp_path, store)), (page := shown(tmp_path, wrong), drawn(page))[1]
    for a, b in zip(right["moments"][0]["cameras"], off["moments"][0]["cameras"], strict=True):
        assert tilt(a["xyz"]) < 0.2 and tilt(b["xyz"]) == pytest.approx(10, abs=0.5)
    assert page.all("td")[5]["text"] != "0.000 to 0.200"


def test_the_page_needs_nothing_else_and_runs_its_own_script_alone(tmp_path, store):
    write_look(tmp_path / "p.html", HOSTILE, scene(open_store(store)))
    write_report(tmp_path / "r.html", title=HOSTILE, result=result(), scenes=[scene(open_store(store))] * 2)
    for name in ("p.html", "r.html"):
        page, whole = Page(tmp_path / name), (tmp_path / name).read_text()
        assert "http:" not in whole and "https:" not in whole
        notes = re.findall(r"<noscript>.*?the table below says where each camera stands.*?</noscript>", whole)
        assert len(notes) == len(page.all("canvas")), "without scripts each view says what is there"
        assert not {k for e in page.elements for k in e} & {"src", "href", "srcset", "onload", "onclick"}
        assert not page.all("link") and page.one("h1")["text"] == HOSTILE
        code = page.one("script")["text"]
        assert code == text("scene.js") and not re.search(r"fetch|XMLHttp|import|eval\(", code)
        allowed = page.one("meta", **{"http-equiv": "Content-Security-Policy"})["content"]
        assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'" in allowed
    assert len(page.all("canvas")) == 2 and page.one("section", id="scene")
    assert (tmp_path / "p.html").stat().st_size < 300_000
    write_report(tmp_path / "r.html", title="t", result=result())
    assert "script-src" not in (bare := (tmp_path / "r.html").read_text()) and "<script" not in bare


@pytest.mark.skipif(which("chromium") is None, reason="no browser on this machine")
def test_a_browser_draws_it(tmp_path, store):
    """With its guard in force: the canvas holds many colours, and no line of the console is an error."""
    write_look(tmp_path / "p.html", "demos", scene(open_store(store)))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=500", "--enable-logging=stderr"]
    done = subprocess.run(
        ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'p.png'}",
         "--window-size=900,900", f"file://{tmp_path / 'p.html'}"], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if not (tmp_path / "p.png").exists():
        pytest.skip(f"the browser does not start: {done.stderr[-200:]}")
    assert "CONSOLE" not in done.stderr, done.stderr
    from PIL import Image

    view = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))[180:640]
    red = (view[..., 0] > 150) & (view[..., 1] < 70) & (view[..., 2] < 70)
    assert len(np.unique(view.reshape(-1, 3), axis=0)) > 30 and red.sum() > 50, "the red box is drawn"


def test_the_path_is_the_tip_s_or_what_the_actions_say(tmp_path):
    told = scene(open_store(rgbd.write(tmp_path / "a.zarr", tip=False)))
    assert np.abs(told.path - rgbd.steps(5)[1]).max() < 1e-6
    demos = open_store(rgbd.write(tmp_path / "b.zarr", tip=False, names=("front",), t=1))
    one = scene(demos)
    assert [m.label for m in one.moments] == ["first row"] and view(one)["moments"] == ["first row"]


def test_depth_without_a_picture_and_points_alone_are_shown(tmp_path):
    grey = scene(open_store(rgbd.write(tmp_path / "a.zarr", only=("depth", "camera"))))
    assert {c.points.rgb.tobytes() for c in grey.moments[0].cameras} == {
        b"\x80" * 3 * len(grey.moments[0].cameras[0].points.xyz)
    }
    x = np.random.default_rng(0).uniform(0, 1, (4, 50, 3)).astype("f4")
    path = write_store(tmp_path / "b.zarr", [{"mine": x, "action": np.zeros((4, 1))}], streams=[points("mine", 50)], action={"u": "m"}, rate_hz=10)  # fmt: skip
    data = drawn(shown(tmp_path, path))
    assert np.abs(np.sort(data["moments"][0]["seen"][0], 0) - np.sort(x[0], 0)).max() < data["step"]
    assert not len(data["path"])


def test_a_horizon_does_not_make_the_table_a_dot(tmp_path, store):
    """A third of the pixels measure a wall 30 m away: it is left out, and the page says how much that is."""
    demos = open_store(store)
    obs = {name: demos.read(name)[0] for name in demos.spec.obs.names}
    obs["front_depth"] = obs["front_depth"].copy()
    obs["front_depth"][:20] = 30_000
    far = view(type(s := scene(demos))(s.title, (moment("m", obs, demos.spec.obs),), s.path))
    assert json.loads(far["data"])["size"] < 2 and 0.12 < far["left_out"] < 0.3


def test_the_command_writes_the_page_and_says_where(tmp_path, store, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data", "show", str(store)]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "page:    right.html"
    assert Page(tmp_path / "right.html").one("h1")["text"] == "right.zarr"
    assert main(["data", "show", str(store), "sub/mine.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"page": "sub/mine.html"} and (tmp_path / "sub/mine.html").exists()


@pytest.mark.parametrize(
    "only, words, said",
    [
        (("image",), [], "hold front, side, tip, no depth and no points"),
        (("image", "depth"), [], "depth stream 'front_depth' comes without front_camera"),
        (("depth", "camera"), ["page.txt"], "ends in .html"),
        (("depth", "camera"), ["a.html", "b.html"], "'b.html'"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(tmp_path, monkeypatch, capsys, only, words, said):
    monkeypatch.chdir(tmp_path)
    rgbd.write(tmp_path / "d.zarr", only=only, t=2)
    assert main(["data", "show", "d.zarr", *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert said in error[-1] and error[-1].startswith("polyarm: ")
    assert not list(tmp_path.glob("*.html"))


def test_no_episode_and_a_calibration_that_is_none_are_sentences(tmp_path, store, monkeypatch):
    with pytest.raises(UserError, match="no episode 2 among 2"):
        scene(open_store(store), 2)
    Store.create(tmp_path / "empty.zarr", open_store(store).spec).close()
    with pytest.raises(UserError, match="no episode 0 among 0"):
        scene(open_store(tmp_path / "empty.zarr"))
    monkeypatch.setattr("polyarm.datasets.episode.require_rows", lambda *_: None)  # as older stores were written
    mirrored = lambda row: row * [1, 1, 1, 1, *[-1, 1, 1, 1] * 3]
    for said in (lambda row: row * 0, mirrored):
        path = rgbd.write(tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr", said=said, t=1)
        with pytest.raises(UserError, match="stream 'front_camera' (holds zeros|has a rotation of determinant -1)"):
            scene(open_store(path))


def test_cells_of_the_grid_are_round_numbers():
    assert [nice(x) for x in (0.013, 0.02, 0.3, 0.5, 0.99, 1.0, 47.0)] == [0.01, 0.02, 0.2, 0.5, 0.5, 1, 20]


def test_worlds_without_depth_have_no_view():
    assert not has_scene(ObsSpace((Stream("front", "image", (4, 4, 3)),), 10.0))
    assert has_scene(ObsSpace((Stream("front_depth", "depth", (4, 4)),), 10.0))


class Shown:
    """Worlds of one observation."""

    num_envs, replays, look = 1, True, True

    def __init__(self, demos, **changed):
        self.world_spec = demos.spec
        self.obs = {s.name: demos.read(s.name)[:1] for s in demos.spec.obs.streams} | changed

    def reset(self, *, seed, options):
        return self.obs, {}

    def step(self, actions): ...


def test_a_report_takes_the_demonstrations_and_what_the_world_shows(tmp_path, store, monkeypatch):
    """With the workspace of the cloud that the task sees. What cannot be shown is a note, and the rest is there."""
    box = {"low": [0.4, -0.25, 0.004], "high": [0.85, 0.25, 0.45]}
    other = {"low": [0, 0, 0], "high": [1, 1, 1]}
    task = OmegaConf.create(
        {"derive": {"other": other, "map": {"camera": "front"}, "cloud": box}, "streams": ["map", "cloud"]}
    )
    assert workspace(task) == (box["low"], box["high"])
    assert workspace(OmegaConf.create({"streams": None, "derive": {"cloud": box}})) is None
    assert workspace(OmegaConf.create({"streams": ["tip"]})) is None

    demos, notes = open_store(store), []
    shows_worlds = unwrap(look)  # types unchecked: Shown is a stand-in
    seeing = Nested(demos.spec.obs.pick(["front"]), front=Whole)
    views, (live,) = shows_worlds(seeing, Shown(demos), 7, workspace(task), notes)
    assert (
        [v.stream for v in views] == ["front"]
        and notes == []
        and live.title.startswith("seed 7")
        and live.box == workspace(task)
    )
    made = {"_target_": "polyarm.cloud.Cloud", "cameras": ["front"], **box, "points": 40}
    node = {"demos": {"_target_": OPEN, "path": str(store)}, "derive": {"made": made}, "streams": ["made"]}
    (stored,) = demonstrations(OmegaConf.create(node), notes)[1]
    assert stored.box == workspace(task) and stored.moments[2].seen["made"].xyz.shape == (40, 3)
    for a, b in zip(stored.moments[0].cameras, live.moments[0].cameras, strict=True):
        assert np.array_equal(a.points.xyz, b.points.xyz), "stored depth and live depth give the same points"
    assert np.array_equal(stored.moments[0].tip, live.moments[0].tip)
    write_report(tmp_path / "r.html", title="t", result=result(), scenes=[stored, live])
    corners = [json.loads(e["data-scene"])["box"] for e in Page(tmp_path / "r.html").all("canvas")]
    assert corners == [[box["low"], box["high"]], [box["low"], box["high"]]]

    none = Shown(demos, front_camera=np.zeros((1, 16), "f4"))
    assert shows_worlds(seeing, none, 7, None, notes)[1] == [] and "camera" in notes[0] and len(notes) == 1
    monkeypatch.setattr("polyarm.datasets.episode.require_rows", lambda *_: None)  # as older stores were written
    bad = rgbd.write(tmp_path / "bad.zarr", said=lambda row: row * 0, t=1)
    card, scenes, gone = demonstrations(
        OmegaConf.create({"demos": {"_target_": OPEN, "path": str(bad)}, "streams": None}), notes
    )
    assert card["episodes"] == 1 and scenes == [] and gone == "" and "no view of the demonstrations" in notes[1]
