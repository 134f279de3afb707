"""The report shows the numbers it was given, in one file that needs nothing else and runs nothing."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polyarm.datasets.info import info
from polyarm.datasets.store import Store
from polyarm.eval import charts
from polyarm.eval.report import duration, headline, write_report
from polyarm.eval.score import Outcome, summary, wilson
from polyarm.eval.training_charts import rise, training
from polyarm.eval.video import write_mp4
from polyarm.spec import ActionSpace, ObsSpace, Spec, Stream, UserError

VOID = {"meta", "img", "br"}
HOSTILE = "<script>alert('x')</script>\"&'"


class Page(HTMLParser):
    """A parsed page: every element with its attributes and text; raises where tags do not nest."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(path.read_text())
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"an attribute twice in {tag}: {names}"
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **wanted):
        wanted = {k.rstrip("_"): v for k, v in wanted.items()}
        return [e for e in self.elements if e["tag"] == tag and all(e.get(k) == v for k, v in wanted.items())]

    def one(self, tag, **wanted):
        (found,) = self.all(tag, **wanted)
        return found

    def facts(self):
        names, values = self.all("dt"), self.all("dd")
        return {a["text"]: b["text"] for a, b in zip(names, values, strict=True)}


def played(n=100, lost=(17, 42, 77), first=100_000):
    return [
        Outcome(first + i, i not in lost, 0.3 if i in lost else 0.96, 300 if i in lost else 90 + i) for i in range(n)
    ]


def result(measure="success", **kwargs):
    return {
        "policy": "flow",
        "task": "pick_place",
        **summary(played(**kwargs), measure),
        "network_evaluations": 10,
        "chunk_ms": [10.0, 11.0, 12.0, 13.0, 50.0],
        "seconds": {"collect": 8.25, "train": 200.0, "evaluate": 3900.0},
        "versions": {"torch": "2.11.0"},
        "machine": {"cpu": "a processor", "cores": 2, "gpu": None},
    }


def test_each_instruction_has_its_row(tmp_path):
    """Mutations: the rate of all in each row; instructions not escaped; a table in a world without."""
    told = [replace(o, told=HOSTILE if i % 4 else "") for i, o in enumerate(played(lost=(0, 4, 5)))]
    found = {**result(), **summary(told, "success")}
    assert found["instructions"][HOSTILE] == {"success_rate": 74 / 75, "n": 75, "interval": list(wilson(74, 75))}
    write_report(tmp_path / "r.html", title="t", result=found)
    cells = [cell["text"] for cell in Page(tmp_path / "r.html").all("td")]
    for name, n, wins in ((HOSTILE, 75, 74), ("(none)", 25, 23)):
        low, high = wilson(wins, n)
        at = cells.index(name)
        assert cells[at : at + 4] == [name, str(n), f"{wins / n:.2f}", f"{low:.2f} to {high:.2f}"]
    write_report(tmp_path / "r.html", title="t", result=result())
    assert not Page(tmp_path / "r.html").all("div", id="instructions")


def train_log(rows=200):
    log = [{"step": 10 * i, "loss": 1 / i, "lr": 1e-4, "samples_per_s": 500.0} for i in range(1, rows + 1)]
    log += [{"step": 10 * i, "val_loss": 1.5 / i} for i in (rows // 2, rows)]
    return [*log, {"step": 10 * rows, "success_rate": 0.5, "score": 0.7, "interval": [0.3, 0.7], "n": 20}]


@pytest.fixture
def data_card(tmp_path):
    """What `info` says of a real store: two episodes of 4 and 6 rows."""
    obs = ObsSpace((Stream("state", "state", (1,), ("elbow_rad",), ("rad",)),), 10.0)
    spec = Spec(obs, ActionSpace(("elbow_rad",), ("rad",), "base", 10.0))
    with Store.create(tmp_path / "demos.zarr", spec) as store:
        for seed, n in enumerate((4, 6)):
            column = np.linspace(-1, 3, n, dtype=np.float32)[:, None]
            store.append({"state": column, "action": np.full_like(column, 0.5), "time_s": np.arange(n) / 10}, seed)
    return info(tmp_path / "demos.zarr")


@pytest.fixture
def clip(tmp_path):
    write_mp4(tmp_path / "seed_100017.mp4", [np.full((64, 64, 3), 80, np.uint8)] * 4, 10.0)
    return tmp_path / "seed_100017.mp4"


def test_the_numbers_shown_are_the_numbers_given(tmp_path, data_card, clip):
    r = result()
    write_report(
        tmp_path / "new" / "r.html", title="flow on pick_place", result=r, log=train_log(), data_card=data_card,
        clips=[(clip, "seed 100017: failure")], config_yaml="policy: flow\n",
    )  # fmt: skip
    page = Page(tmp_path / "new" / "r.html")
    assert page.one("h1")["text"] == "flow on pick_place"
    assert page.one("div", class_="big")["text"] == "0.97success rate, n = 100"
    lo, hi = r["interval"]
    assert (
        f"97 of 100 fresh seeds solved; the true rate lies between {lo:.2f} and {hi:.2f} with 95 % confidence"
        in (page.one("section", id="headline")["text"])
    )
    left, width, dot = (
        float(x) for x in re.findall(r"(?:left|width):([\d.]+)%", page.all("b")[0]["style"] + page.all("i")[0]["style"])
    )
    assert (left, left + width, dot) == pytest.approx((100 * lo, 100 * hi, 97), abs=0.011)
    cells = [e["title"] for e in page.all("i") if e.get("title", "").startswith("seed ")]
    assert len(cells) == 100
    assert cells[17] == "seed 100017: failed, 300 steps, best score 0.30"
    assert cells[18] == "seed 100018: solved, 108 steps, best score 0.96"
    assert page.one("p", id="failed")["text"] == "Failed seeds (3): 100017, 100042, 100077"
    facts = page.facts()
    assert facts["plan one chunk"] == "12.0 ms" and facts["network evaluations"] == "10 a chunk"
    assert facts["torch"] == "2.11.0" and facts["cores"] == "2" and "gpu" not in facts
    assert facts["training steps"] == "2,000"
    assert "median 12.0 ms" in page.one("section", id="spread")["text"]
    assert "95th percentile 42.6 ms" in page.one("section", id="spread")["text"]
    for words in ("collect 8.2 s", "train 3 min 20 s", "evaluate 1 h 5 min", "together 1 h 8 min"):
        assert words in page.one("section", id="seconds")["text"]
    titles = [e["text"] for e in page.all("figcaption")]
    assert {"Loss", "Success rate while training", "Learning rate", "Throughput", "Episode length"} <= set(titles)
    assert "success rate 0.5 at step 2,000" in [e["text"] for e in page.all("title")]
    assert page.one("pre")["text"] == "policy: flow\n"


def test_the_data_card_shows_what_info_says(tmp_path, data_card):
    write_report(tmp_path / "r.html", title="t", result=result(), data_card=data_card)
    page = Page(tmp_path / "r.html")
    facts = page.facts()
    assert facts["episodes"] == "2, 2 solved" and facts["frames"] == "10"
    assert facts["frames an episode"] == "4 to 6" and facts["rate"] == "10 Hz, measured 10"
    assert facts["duration"] == "1.0 s" and facts["on disk"].endswith("B")
    cells = [e["text"] for e in page.all("td")]
    assert cells[:7] == ["state", "elbow_rad", "rad", "-1", "1", "3", f"{data_card['channels'][0]['std']:.3g}"]
    assert cells[8:15] == ["action", "elbow_rad", "rad", "0.5", "0.5", "0.5", "0"] and cells[15].strip() == "constant"


def test_the_data_card_of_unknown_things(tmp_path, data_card):
    empty = dict.fromkeys(("length", "rate_hz", "measured_hz", "duration_s", "bytes", "successes"))
    lost = {**data_card["channels"][0], **dict.fromkeys(("min", "max", "mean", "std")), "not_finite": 7}
    write_report(tmp_path / "r.html", title="t", result=result(), data_card={**data_card, **empty, "channels": [lost]})
    page = Page(tmp_path / "r.html")
    assert not {"rate", "duration", "on disk", "frames an episode"} & page.facts().keys()
    assert [e["text"].strip() for e in page.all("td")] == ["state", "elbow_rad", "rad", "", "", "", "", "7 not finite"]


def test_a_score_is_headed_by_its_mean(tmp_path):
    r = result("score", n=20, lost=(3,))
    write_report(tmp_path / "r.html", title="t", result=r)
    page = Page(tmp_path / "r.html")
    assert page.one("div", class_="big")["text"] == "0.93mean score, n = 20"
    assert page.facts()["success rate"] == "0.95"
    cell = next(e for e in page.all("i") if e.get("title", "").startswith("seed 100003:"))
    assert cell["class"] == "bad" and cell["style"] == "--h:30.0%"


def test_one_file_alone(tmp_path, data_card, clip):
    write_report(
        tmp_path / "r.html", title="t", result=result(), log=train_log(), data_card=data_card,
        clips=[(clip, "a"), (clip, "b")], config_yaml="x: 1",
    )  # fmt: skip
    page = Page(tmp_path / "r.html")
    addresses = [e[k] for e in page.elements for k in ("src", "href", "srcset", "poster", "action") if k in e]
    assert len(addresses) == 4
    for address in addresses:
        head, _, data = address.partition(",")
        inside = base64.b64decode(data, validate=True)
        assert inside == clip.read_bytes() if head == "data:video/mp4;base64" else head == "data:image/jpeg;base64"
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert "url(" not in page.one("style")["text"] and "@import" not in page.one("style")["text"]
    policy = page.all("meta")[2]
    assert policy["http-equiv"] == "Content-Security-Policy" and "default-src 'none'" in policy["content"]
    for video in page.all("video"):
        assert {"controls", "loop", "muted"} <= video.keys()


def test_missing_parts_are_left_out(tmp_path):
    bare = {k: v for k, v in result().items() if k in ("measure", "success_rate", "n", "interval", "interval_kind")}
    write_report(tmp_path / "bare.html", title="t", result=bare, log=[])
    page = Page(tmp_path / "bare.html")
    assert [e.get("id") for e in page.all("section")] == ["headline"]
    assert not page.all("h2") and not page.all("svg") and not page.facts()


def test_hostile_names_stay_text(tmp_path, data_card, clip):
    r = {**result(), "policy": HOSTILE, "task": HOSTILE, "versions": {HOSTILE: HOSTILE}, "seconds": {HOSTILE: 1.0}}
    card = {**data_card, "channels": [{**data_card["channels"][0], "name": HOSTILE, "unit": HOSTILE}]}
    write_report(
        tmp_path / "r.html", title=HOSTILE, result=r, data_card=card, clips=[(clip, HOSTILE)],
        config_yaml=f"</pre>{HOSTILE}",
    )  # fmt: skip
    page = Page(tmp_path / "r.html")
    assert not page.all("script")
    assert page.one("h1")["text"] == HOSTILE and page.one("pre")["text"] == f"</pre>{HOSTILE}"
    assert page.facts()[HOSTILE] == HOSTILE and page.facts()["policy"] == HOSTILE
    assert [e["text"] for e in page.all("td")][1:3] == [HOSTILE, HOSTILE]
    assert page.one("i", class_="s0", style="flex:100.0")["title"] == f"{HOSTILE}: 1.0 s"
    assert HOSTILE in [e["text"] for e in page.all("figcaption")]


def test_a_long_run_stays_a_light_page(tmp_path):
    r = {**result(n=1000), "chunk_ms": np.random.default_rng(0).gamma(4, 3, 5000).tolist()}
    write_report(tmp_path / "r.html", title="t", result=r, log=train_log(20_000))
    assert (tmp_path / "r.html").stat().st_size < 300_000
    assert not (tmp_path / "r.html.partial").exists()


def curves(log):
    """{label: (css, heights of its points)} of the loss chart."""
    (chart,) = [c for c in training(log, "success")["charts"] if c.title == "Loss"]
    drawn = [path for path in chart.paths if "whisker" not in path[0]]
    return {label: (css, d.count("L")) for (css, label), (_, d) in zip(chart.legend, drawn, strict=True)}


@pytest.mark.parametrize("rows", [5, 60])
def test_each_loss_of_a_policy_is_drawn_by_its_name(rows, tmp_path):
    """Mutation: draw the sum alone, or the held-out losses of the sum alone."""
    more = lambda i: {"loss.actions": 0.7 / i, "loss.contact": 0.3 / i}
    log = [{"step": i, "loss": 1 / i, **more(i)} for i in range(1, rows + 1)]
    log += [{"step": i, "val_loss": 2.0, "val_loss.actions": 1.5, "val_loss.contact": 0.5} for i in (1, rows)]
    found = curves(log)
    assert {label: css for label, (css, _) in found.items() if label not in ("training", "smoothed")} == {
        "held-out episodes": "bad", "actions": "c0", "held-out episodes, actions": "c0",
        "contact": "c1", "held-out episodes, contact": "c1",
    }  # fmt: skip
    assert ("smoothed" in found) == (rows == 60) and "training" in found
    assert found["actions"][1] == rows - 1 and found["held-out episodes, contact"][1] == 1
    write_report(tmp_path / "r.html", title="t", result=result(), log=log)
    page = Page(tmp_path / "r.html")
    assert {"actions", "contact"} <= {e["text"] for e in page.all("span")}
    assert set(curves(train_log())) == {"training", "smoothed", "held-out episodes"}


def test_what_acted_and_what_failed_is_said(tmp_path):
    r = result() | {
        "checkpoint": "../checkpoints/step_00000020", "overrides": ["sampler=heun"], "notes": [f"no clips: {HOSTILE}"],
        "acting": {"sampler": "heun", "denoising_steps": 5, "limit": None}, "demonstrated": [100_001],
    }  # fmt: skip
    write_report(tmp_path / "r.html", title="t", result=r)
    page = Page(tmp_path / "r.html")
    facts = page.facts()
    assert facts["sampler"] == "heun" and facts["denoising steps"] == "5" and "limit" not in facts
    assert facts["settings given"] == "sampler=heun" and facts["checkpoint"] == "../checkpoints/step_00000020"
    assert [e["text"] for e in page.all("li")] == [f"no clips: {HOSTILE}"]
    assert any(e["text"].startswith("97 of 100 seeds (1 of them demonstrated) solved;") for e in page.all("p"))


def test_a_clip_of_unknown_kind_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.npz is no video or picture"):
        write_report(tmp_path / "r.html", title="t", result=result(), clips=[(tmp_path / "a.npz", "a")])


def test_a_sentence_promises_no_more_than_is_known():
    one = summary([Outcome(0, False, 0.4, 9)], "score")
    assert "cannot tell" in headline(one).sentence and "lies between" not in headline(one).sentence
    many = summary(played(n=400, lost=range(7)), "success")
    assert headline(many).sentence.startswith("393 of 400 fresh seeds solved; the true rate lies between 0.964 and")
    assert headline(summary(played(n=1, lost=()), "success")).sentence.startswith("1 of 1 fresh seed solved")


@given(
    st.lists(st.floats(0, 1e4, width=32), min_size=2, max_size=200),
    st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=200),
)
@settings(deadline=None, max_examples=60)
def test_every_value_is_in_one_bar_of_a_histogram(a, b):
    chart = charts.histogram("t", "time, s", "things", [("a", "ok", np.array(a)), ("b", "bad", np.array(b))])
    if chart is None:
        assert max(*a, *b) == pytest.approx(min(*a, *b), rel=1e-8, abs=0)
        return
    for css, values in (("ok", a), ("bad", b)):
        assert sum(int(hover.split()[0]) for c, *_, hover in chart.bars if c == css) == len(values)
    count = [int(hover.split()[0]) for *_, hover in chart.bars]
    assert np.ptp([bar[4] / n for bar, n in zip(chart.bars, count, strict=True)]) < 0.21, "height is count"
    columns = {bar[1]: 0.0 for bar in chart.bars}
    for _, x, y, _, h, _ in sorted(chart.bars, key=lambda bar: -bar[2]):
        assert y + h + columns[x] == pytest.approx(charts.HEIGHT - charts.BOTTOM, abs=0.21), "bars stand on each other"
        columns[x] += h


def test_a_curve_runs_through_its_points():
    x = np.array([0.0, 50.0, 100.0])
    chart = charts.lines("t", "step", "y", [charts.Line("a", "ok", x, np.array([0.0, 0.5, 1.0]))], rate=True)
    floor, roof, left, right = charts.HEIGHT - charts.BOTTOM, charts.TOP, charts.LEFT, charts.WIDTH - charts.RIGHT
    assert chart.paths == [
        ("ok", f"M{left:g} {floor:g}L{(left + right) / 2:g} {(floor + roof) / 2:g}L{right:g} {roof:g}")
    ]
    assert chart.y_ticks[0] == (floor, "0") and chart.y_ticks[-1] == (roof, "1")
    # three decades: logarithmic, each as high as the other
    steep = charts.lines("t", "step", "y", [charts.Line("a", "ok", x, np.array([1.0, 0.03, 0.0009]))])
    heights = {label: y for y, label in steep.y_ticks}
    assert set(heights) == {"1", "0.1", "0.01", "0.001"}
    assert heights["0.1"] - heights["1"] == pytest.approx(heights["0.01"] - heights["0.1"], abs=0.2)


@pytest.mark.parametrize(
    ("y", "ends"), [([0.0, 0.0], {"0", "1"}), ([-2.0, -2.0], {"-2", "0"}), ([5.0, 5.0], {"0", "5"})]
)
def test_a_level_curve_has_an_axis(y, ends):
    chart = charts.lines("t", "step", "y", [charts.Line("a", "ok", np.array([0.0, 1.0]), np.array(y))])
    assert {chart.y_ticks[0][1], chart.y_ticks[-1][1]} == ends


def test_thinning_keeps_every_spike_and_smoothing_the_level():
    y = np.random.default_rng(0).normal(size=20_000)
    y[12_345] = 50
    keep = charts.thin(y)
    assert len(keep) <= charts.MOST_POINTS and 12_345 in keep and y.argmin() in keep
    assert np.array_equal(keep, np.sort(keep))
    assert charts.smooth(np.full(300, 2.5)) == pytest.approx(2.5)
    ramp = np.arange(300.0)
    assert charts.smooth(ramp)[20:-20] == pytest.approx(ramp[20:-20]), "no lag"
    assert charts.smooth(y).std() < 0.1


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s"), (3599.6, "1 h 0 min")]
)
def test_durations_carry_over(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"), [(20000, "20,000"), (0.05, "0.05"), (6.000000001e-5, "6e-5"), (-1.5, "-1.5"), (0, "0")]
)
def test_short_numbers(value, words):
    assert charts.short(float(value)) == words


def test_a_clip_shows_how_it_ends_and_its_controls_lie_below_the_picture(tmp_path):
    """Mutations: the first frame; controls in the picture's own height; a video that the keyboard does not reach."""
    frames = [np.full((48, 64, 3), shade, np.uint8) for shade in (20, 20, 20, 200)]
    write_mp4(tmp_path / "a.mp4", frames, 10.0)
    write_report(tmp_path / "r.html", title="t", result=result(), clips=[(tmp_path / "a.mp4", "seed 1: failure")])
    page = Page(tmp_path / "r.html")
    video = page.one("video")
    poster = np.asarray(Image.open(io.BytesIO(base64.b64decode(video["poster"].partition(",")[2]))))
    assert poster.shape == (48, 64, 3) and poster.mean() == pytest.approx(200, abs=4)
    assert {"controls", "playsinline", "muted"} <= video.keys() and video.get("tabindex") != "-1"
    assert video["aria-label"] == "seed 1: failure"
    assert page.one("div", class_="screen")["style"] == "--high:0.75"
    css = page.one("style")["text"]
    assert re.search(r"\.screen {[^}]*padding-top: calc\(var\(--high\) \* 100% \+ var\(--controls\)\)", css)
    assert "object-position: top" in css
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:300])
    with pytest.raises(UserError, match=r"cut\.mp4 (cannot be played|holds no picture).*: make it anew"):
        write_report(tmp_path / "r.html", title="t", result=result(), clips=[(tmp_path / "cut.mp4", "a")])


@pytest.mark.parametrize("seconds", [{"a": 0.1, "b": 0.3}, {"a": 0.0, "b": 0.0}, {"a": 100.0, "b": 300.0}, {"a": 0.02}])
def test_the_bar_of_stages_is_full_however_short_they_are(tmp_path, seconds):
    """Shares below 1 in all leave room in a flex row. Mutation: seconds as shares."""
    write_report(tmp_path / "r.html", title="t", result=result() | {"seconds": seconds})
    bars = [e for e in Page(tmp_path / "r.html").all("i") if e.get("style", "").startswith("flex:")]
    shares = [float(e["style"].removeprefix("flex:")) for e in bars]
    assert sum(shares) >= 1 and len(shares) == len(seconds)
    if seconds.get("b"):
        assert shares == pytest.approx([25, 75])


def test_when_and_by_which_command_it_was_made(tmp_path):
    """Mutations: leave either out; the time without its zone."""
    command = f"polyarm eval 'runs/a b' {HOSTILE}"
    write_report(
        tmp_path / "r.html", title="t", result=result() | {"date": "2026-01-31T09:05:07+05:30", "command": command}
    )
    page = Page(tmp_path / "r.html")
    assert page.one("pre", id="command")["text"] == command
    assert "user-select: all" in re.search(r"pre\.command {([^}]*)}", page.one("style")["text"])[1]
    assert page.one("time", datetime="2026-01-31T09:05:07+05:30")["text"] == "2026-01-31 09:05 (UTC+05:30)"


def test_every_wide_table_scrolls_and_says_so(tmp_path, data_card):
    """By keyboard too. Mutation: a table outside its container."""
    channel = {"name": "x", "unit": "m", "std": 1.0, **dict.fromkeys(("policy", "best_of_samples", "spread", "repeat", "mean"), 1.0)}  # fmt: skip
    offline = {
        "measure": "action_error", "action_error": 1.0, "said": "worse", "n": 2, "samples": 8, "best_of_samples": 1.0,
        "baselines": {"repeat": 1.0, "mean": 1.0}, "executed_rows": 8, "windows": 3, "channels": [channel],
    }  # fmt: skip
    for r, tables in ((result(), 1), (offline, 2)):
        write_report(tmp_path / "r.html", title="t", result=r, data_card=data_card)
        page = Page(tmp_path / "r.html")
        wide = page.all("div", class_="wide")
        assert len(wide) == tables == len([e for e in page.all("table") if "class" not in e])
        assert all(e["tabindex"] == "0" and e["role"] == "region" and e["aria-label"] for e in wide)
        assert [e["text"][:15] for e in page.all("p", class_="hint")] == ["swipe sideways "] * tables
        css = page.one("style")["text"]
        assert re.search(r"\.wide {[^}]*overflow-x: auto;[^}]*scroll", css)
        assert re.search(r"@media \(max-width: 600px\) {[^@]*\.hint { display: block; }", css)


def test_words_of_the_trade_are_explained_where_they_stand(tmp_path):
    """Mutations: explain none; promise fresh seeds of demonstrated ones; speak of an interval that is none."""
    said = lambda r, **more: (
        write_report(tmp_path / "r.html", title="t", result=r, **more), Page(tmp_path / "r.html")
    )[1]  # fmt: skip
    page = said(result(), log=train_log())
    terms = page.one("p", id="terms")["text"]
    for words in ("Score: the best reward", "interval: where the rate", "fresh seeds: starts that are in none"):
        assert words in terms
    training = page.one("section", id="training")["text"]
    assert "Held-out episodes are kept out of training" in training and "Upright lines are intervals, where" in training
    assert "fresh" not in said(result() | {"demonstrated": [100_001]}).one("p", id="terms")["text"]
    assert "interval" not in said(result("score", lost=(), n=1)).one("p", id="terms")["text"]
    never = said(result(), log=[r for r in train_log() if "val_loss" not in r])
    assert "eld-out" not in never.one("section", id="training")["text"]


def test_a_time_says_what_it_is_a_time_of(tmp_path):
    """Mutation: a bare number of milliseconds."""
    page = lambda r: (write_report(tmp_path / "r.html", title="t", result=r), Page(tmp_path / "r.html"))[1]
    said = page(result() | {"acting": {"threads": 3}}).one("section", id="spread")["text"]
    assert "timed 5 times on a processor, 3 torch threads: from an observation to one chunk" in said
    assert "a batch of one" in said and "the world's own step not" in said
    gpu = {"machine": {"cpu": "a processor", "cores": 2, "gpu": "a card"}, "acting": {"threads": 3}}
    assert "timed 5 times on a card: from" in page(result() | gpu).one("section", id="spread")["text"]
    bare = {k: v for k, v in result().items() if k != "machine"} | {"chunk_ms": [2.0, 2.0]}
    assert "timed 2 times: from" in page(bare).one("section", id="spread")["text"]
    assert "many at a time, without clips" in page(result()).one("section", id="seconds")["text"]


def losses(*values, key="val_loss"):
    return [{"step": 100 * (i + 1), key: v} for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.3, 0.05, 0.07), ["lowest at step 200 (0.05)", "0.07, 40 % higher, at step 300"]),
        ((0.05, 0.3, 0.1), ["lowest at step 100 (0.05)", "0.1, 100 % higher, at step 300"]),
        ((0.5, -2.0, -1.0), ["lowest at step 200 (-2)", "and -1 at step 300"]),
        ((1.0, 0.0, 0.5), ["lowest at step 200 (0)", "and 0.5 at step 300"]),
        ((0.3, 0.2, 0.1), None), ((0.1, 0.3, 0.1), None), ((0.3, 0.1, 0.1005), None), ((0.2,), None), ((), None),
    ],
)  # fmt: skip
def test_a_held_out_loss_that_rises_is_commented_and_no_other(values, words, tmp_path):
    """Mutations: compare with the first value; compare the training loss; a percentage of a number below zero."""
    log = [*losses(*values), *losses(1.0, 0.1, 3.0, key="loss")]
    found = rise(log, "success", 200)
    if words is None:
        assert found == ""
    else:
        assert all(part in found for part in words) and found.endswith("; judged here is step 200.")
        assert ("%" in found) == (min(values) > 0) and "which success need not follow" in found
        assert "judged here" not in rise(log, "success") and "need not" not in rise(log, "action_error")
    write_report(tmp_path / "r.html", title="t", result=result() | {"checkpoint": "../checkpoints/step_00000200"}, log=log)  # fmt: skip
    assert [e["text"] for e in Page(tmp_path / "r.html").all("p", id="rise")] == ([found] if found else [])


def test_what_should_be_there_and_is_not_is_said(tmp_path, data_card):
    """Mutation: leave the section out."""
    absent = {"data": f"the demonstrations {HOSTILE} do not exist", "training": "no log"}
    write_report(tmp_path / "r.html", title="t", result=result(), absent=absent)
    page = Page(tmp_path / "r.html")
    assert absent["data"] in page.one("section", id="data")["text"] and not page.all("table")
    assert "Not shown: no log" in page.one("section", id="training")["text"]
