"""A policy on an arm: what is refused before anything is opened, what comes of it, and that the arm is left as the station says.

Mutations that turn these red: the policy is looked at after the arm is open; a slip or a late row that is not kept; a second deployment by
the clock over the first; an arm that stops takes the episodes before it with it; the simulator's figures are of other seeds; the scene
of the twin is seen with other cameras than the task's; bring-up that leaves a control socket open when the port is wrong.
"""

import json
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from polyarm.cli import main
from polyarm.commands import demo as demo_command
from polyarm.eval import deploy as deployment
from polyarm.eval.deploy import Kept, deploy
from polyarm.policies import checkpoint
from polyarm.real_robot import bringup, preflight
from polyarm.real_robot.arm import ReadFailed
from polyarm.real_robot.camera import Frame
from polyarm.real_robot.daemon import Daemon
from polyarm.real_robot.link import ArmStopped, Seen
from polyarm.real_robot.plant import Plant
from polyarm.real_robot.robot import read
from polyarm.real_robot.states import State
from polyarm.real_robot.table import AtHome, Table
from polyarm.real_robot.twin.twin import Twin
from polyarm.real_robot.world import RobotWorld
from polyarm.sim.mujoco.pick_place import PickPlace
from polyarm.spec import ObsSpace, Stream, UserError
from tests.twins import serving

KEYS = {
    "success_rate", "interval", "mean_steps", "slips", "holds", "lateness_ms", "loop_lateness_ms", "estimator", "simulator", "robot",
    "per_seed", "seeds", "n", "ahead", "latency_ms", "stopped", "priority", "counts", "identity", "command", "machine", "notes",
}  # fmt: skip
SHORT = "+task.env_kwargs.max_steps=8"


@pytest.fixture(scope="module")
def run(tmp_path_factory, words):
    """A policy that learned for two steps, on the demo task."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert (
        main(
            [
                "train",
                *words(out, "train.steps=2", "train.checkpoint_every=2", "train.val_every=0", "train.log_every=1"),
            ]
        )
        == 0
    )
    return out


def result_of(out):
    return json.loads((out / "result.json").read_text())


def test_the_model_the_twin_and_the_wire_give_the_same_result(run, tmp_path, capsys):
    """The smallest deployment there is, through each: same keys; same seeds, so nearly the same steps."""
    found = {}
    with serving(Twin(plant=Plant(), lockstep=True), "unix") as (port, _, _):
        for name, words in (("sim", ["robot=so101_sim"]), ("twin", ["robot=so101_twin", f"robot.port={port}"])):
            out = tmp_path / name
            assert (
                main(["deploy", str(run), *words, "deploy.episodes=1", SHORT, f"output_dir={out}", "eval.ahead=1"]) == 0
            )
            found[name] = result_of(out)
            assert (out / "report.html").stat().st_size > 10_000
            assert (
                name in (out / "report.html").read_text() and "slots that slipped" in (out / "report.html").read_text()
            )
    for name, result in found.items():
        assert result.keys() >= KEYS and result["estimator"] == name
        assert result["lateness_ms"] == {"p50": 0, "p99": 0, "max": 0} and result["slips"] == 0
        assert result["n"] == 1 and result["mean_steps"] == 8 and result["ahead"] == 1
        assert result["per_seed"][0].keys() == {"seed", "success", "score", "steps", "slips", "holds"}
        assert result["seeds"] == [100_000] and result["simulator"] is None
    a, b = (np.load(tmp_path / name / "episodes.npz")["seed_100000"] for name in found)
    assert (
        a.shape == b.shape == (8, 6) and np.abs(a - b)[0].max() < 0.05
    )  # what is first seen differs by a motor's ticks
    assert "mean" not in capsys.readouterr().err  # no simulator to stand beside


def test_in_lock_step_the_same_again_takes_the_folder_and_by_the_clock_another(run):
    robot = read(["robot=so101_sim"])
    config = checkpoint.read_config(checkpoint.find(run))
    folders = deployment.places(checkpoint.find(run), config, [], robot)
    assert [p.name for p in folders[:3]] == ["deploy_so101_sim", "deploy_so101_sim_2", "deploy_so101_sim_3"]
    words = ["deploy.episodes=1", SHORT, "eval.ahead=0"]
    outs = [deploy(run, [*words, f"deploy.seed={seed}"], robot, "again")["identity"] for seed in (7, 7)]
    assert outs[0] == outs[1] and result_of(run / "deploy_so101_sim")["seeds"] == [7]
    assert not (run / "deploy_so101_sim_2").exists()


@pytest.mark.parametrize(
    "given, said",
    [
        (["robot=so101", "robot.calibration=CAL"], "needs observation stream 'cube', robot so101 gives joint_pos"),
        (
            ["robot=so101", "robot.calibration=CAL", "robot.action_hz=30"],
            "policy flow runs at 20 Hz, robot so101 at 30 Hz",
        ),
        (["robot=so101", "robot.calibration=nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["robot=so101_sim", "eval.goals=perhaps"], "eval.goals"),
        (["robot=so101_sim", "deploy.episodes=0"], "deploy.episodes=0"),
        (["robot=so101_sim", "deploy.sed=0"], "did you mean 'deploy.seed'"),
        (["robot=so101_sim", "eval.ahead=99"], "cannot plan 99 rows ahead"),
        ([], "there is no robot"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_opened(run, tmp_path, monkeypatch, capsys, given, said):
    from polyarm.real_robot import calibration

    calibration.so101().save(tmp_path / "cal.yaml")
    monkeypatch.setattr(deployment, "bring_up", lambda *_: pytest.fail("something was opened"))
    assert main(["deploy", str(run), *(w.replace("CAL", str(tmp_path / "cal.yaml")) for w in given)]) == 2
    assert said in capsys.readouterr().err
    assert not list(run.glob("deploy_so101/*"))


@pytest.mark.parametrize("change, said", [
    (lambda spec: replace(spec, action=replace(spec.action, names=("a", *spec.action.names[1:]))), "the action is 6 channels in policy flow and 6 in robot so101_sim"),
    (lambda spec: replace(spec, action=replace(spec.action, rate_hz=30.0)), "policy flow runs at 20 Hz, robot so101_sim at 30 Hz"),
    (lambda spec: replace(spec, obs=spec.obs.pick(["joint_pos"])), "needs observation stream 'cube', robot so101_sim gives joint_pos"),
])  # fmt: skip
def test_a_policy_for_another_arm_rate_or_camera_is_told_both_sides(run, change, said):
    folder = checkpoint.find(run)
    config, policy = checkpoint.read_config(folder), checkpoint.load(folder)
    with pytest.raises(UserError, match=said):
        deployment.require_station(policy, config, read(["robot=so101_sim"]), change(PickPlace().world_spec))


def test_a_wrong_port_or_a_twin_of_another_clock_leaves_nothing_behind(run, capsys):
    with serving(Twin(plant=Plant(), lockstep=True), "unix") as (port, _, served):
        for words, said in (
            (["robot.port=/nowhere"], "no twin is told anything at /nowhere.ctl"),
            (
                [f"robot.port={port}", "robot.clock=wall", "eval.ahead=1"],
                "stands still, robot.clock is wall: give robot.clock=lockstep",
            ),
        ):
            assert main(["deploy", str(run), "robot=so101_twin", *words]) == 2
            assert said in capsys.readouterr().err
        end = time.monotonic() + 20
        while len(served._hosts) > 1 and time.monotonic() < end:  # the fixture's own remains
            time.sleep(0.01)
        assert len(served._hosts) == 1
    assert not list(run.glob("deploy_so101_twin/result.json"))


def breaking(error):
    """An arm's worlds of which the second episode is broken off."""

    class Breaks(Kept):
        n = 0

        def reset(self, **given):
            self.n += 1
            return super().reset(**given)

        def step(self, actions):
            if self.n == 2:
                raise error
            return super().step(actions)

    return Breaks


@pytest.mark.parametrize("error, code, said", [
    (ArmStopped("the arm is in FAULT: elbow_flex: overheated"), 2, "elbow_flex: overheated (in episode 2 of 3)"),
    (KeyboardInterrupt(), 130, "interrupted, the arm is at rest"),
])  # fmt: skip
def test_an_arm_that_stops_and_ctrl_c_keep_the_episodes_before(run, tmp_path, monkeypatch, capsys, error, code, said):
    kept = []
    monkeypatch.setattr(deployment, "Kept", lambda world: kept.append(breaking(error)(world)) or kept[0])
    out = tmp_path / "out"
    assert main(["deploy", str(run), "robot=so101_sim", "deploy.episodes=3", SHORT, f"output_dir={out}"]) == code
    text = capsys.readouterr().err
    assert said in text and f"1 of 3 episodes are in {out}" in text
    result = result_of(out)
    assert result["n"] == 1 and said in result["stopped"]
    assert kept[0].world.link.loop.state is State.OFF and not any(
        kept[0].world.scene.plant.share
    )  # braked, then let go of


def test_slips_and_lateness_are_kept_of_every_episode(run, tmp_path, monkeypatch):
    """As a machine that is late would make them. Red where only the last episode's count."""

    class Late(Kept):
        def step(self, actions):
            self.world.link._now += 30_000_000
            return super().step(actions)

    monkeypatch.setattr(deployment, "Kept", Late)
    result = deploy(run, ["deploy.episodes=2", SHORT, f"output_dir={tmp_path / 'out'}"], read(["robot=so101_sim"]), "")
    assert [row["slips"] for row in result["per_seed"]] == [8, 8] and result["slips"] == 16
    assert result["lateness_ms"] == {"p50": 30, "p99": 30, "max": 30}


def test_the_simulators_figures_are_of_the_same_seeds_and_weights(run):
    folder = checkpoint.find(run)
    model = deployment.place.digest(folder / "model.safetensors")
    rows = [{"seed": s, "success": s % 2 == 0, "steps": 10 * s} for s in range(1, 9)]
    evaluation = {"success_rate": 0.5, "per_seed": rows, "identity": {"models": [model]}, "ahead": 0}
    (run / "eval").mkdir(exist_ok=True)
    file = run / "eval" / "result.json"
    file.write_text(json.dumps(evaluation))
    assert deployment.simulated(folder, [2, 3, 4]) == {"success_rate": 2 / 3, "mean_steps": 30, "n": 3}
    assert deployment.simulated(folder, [8, 9]) is None
    file.write_text(json.dumps(evaluation | {"identity": {"models": ["other"]}}))
    assert deployment.simulated(folder, [2, 3, 4]) is None
    file.unlink()


def test_the_twins_scene_is_seen_as_the_task_sees_it():
    """A mirror of another process's scene shows the same, pictures too."""
    robot, task = (
        read(["robot=so101_twin"]),
        {"env_id": "polyarm/PickPlace-v0", "env_kwargs": {"cameras": ["wrist"], "image_size": [12, 16]}},
    )
    mirror = bringup.before(robot, task, ObsSpace((), 20.0))
    twin = Twin(plant=Plant(), lockstep=True)
    scene = bringup.Mirror(twin_remote(twin), mirror)
    scene.reset(5)
    seen, done = scene.see()
    there = PickPlace(cameras=["wrist"], image_size=[12, 16])
    want = there.reset(seed=5)[0]
    assert not done and seen["wrist"].shape == (12, 16, 3)
    for name in want:
        np.testing.assert_array_equal(seen[name], want[name])


def twin_remote(twin):
    return lambda name, **given: json.loads(json.dumps(twin.do(name, given)))


def test_planning_is_measured_by_the_clock_where_no_word_says_how_long_it_takes(run, monkeypatch):
    folder = checkpoint.find(run)
    config, policy = checkpoint.read_config(folder), checkpoint.load(folder)
    monkeypatch.setattr(deployment, "chunk_times", lambda *_: [60.0] * 30)
    wall, still = read(["robot=so101_twin", "robot.clock=wall"]), read(["robot=so101_twin"])
    rows = lambda robot, *words: (
        deployment.in_time(deployment.override(config, words), policy, words, robot, torch.device("cpu")).rows
    )
    assert rows(wall) == 2 and rows(still) == 0
    assert rows(wall, "eval.ahead=0") == 0 and rows(wall, "eval.latency_ms=10") == 1
    assert rows(still, "eval.latency_ms=auto") == 2


# A table


class Eye:
    size, rate_hz = (24, 32), 30.0

    def __init__(self):
        self.seq, self.t_ns, self.open_now = 0, 0, False

    def open(self):
        self.open_now = True

    def close(self):
        self.open_now = False

    def read(self, deadline_ns):
        if self.t_ns:
            raise ReadFailed("nothing new")
        self.seq += 1
        return Frame(np.full((24, 32, 3), self.seq % 256, np.uint8), deadline_ns, deadline_ns, self.seq)


def table(tmp_path, monkeypatch, done=lambda: False):
    from polyarm.real_robot import calibration
    from polyarm.real_robot.robot import Robot

    calibration.so101().save(tmp_path / "cal.yaml")
    eye = Eye()
    monkeypatch.setattr(Robot, "eyes", lambda self: {"front": eye})
    sees = ObsSpace((Stream("front", "image", (12, 12, 3), frame="front"),), 20.0)
    return Table(
        read(["robot=so101", f"robot.calibration={tmp_path / 'cal.yaml'}"]), sees, lambda seed: None, done
    ), eye


def test_a_table_shows_pictures_at_the_policys_size_and_stops_at_old_ones(tmp_path, monkeypatch):
    made, eye = table(tmp_path, monkeypatch, done=lambda: eye.seq > 2)
    assert made.world_spec.obs.names == ("joint_pos", "front") and made.world_spec.obs["front"].shape == (12, 12, 3)
    assert made.max_steps == 160
    with ExitStack() as stack:
        made.open(stack)
        assert eye.open_now
        seen, done = made.see()
        assert seen["front"].shape == (12, 12, 3) and (seen["front"] == 2).all() and not done
        assert made.see()[1]
        eye.t_ns = 1
        made._last["front"] = replace(made._last["front"], t_ns=time.monotonic_ns() - 10**9)
        with pytest.raises(ArmStopped, match="camera front has shown nothing new"):
            made.see()
    assert not eye.open_now


def test_a_table_without_a_person_is_refused(tmp_path, monkeypatch):
    table(tmp_path, monkeypatch)
    person = Table(read(["robot=so101", f"robot.calibration={tmp_path / 'cal.yaml'}"]), ObsSpace((), 20.0))
    with ExitStack() as stack, pytest.raises(UserError, match="run it in a terminal"):
        person.open(stack)


class Far:
    """A link that is at once where it is told to be."""

    lead_ns = 10_000_000

    def __init__(self):
        self.t, self.q, self.state, self.chunks, self.acts = 0, (0.0, 0.0), State.LIMP, [], []

    def now(self):
        return self.t

    def enable(self):
        self.state = State.HOLD
        self.acts.append("enable")

    def release(self):
        self.acts.append("release")

    def close(self): ...

    def submit(self, chunk):
        self.chunks.append(chunk)
        self.q = chunk.rows[-1]

    def wait(self, t):
        self.t = max(t, self.t)

    def look(self):
        return Seen(self.q, self.t, self.state, "")


def test_between_episodes_the_arm_goes_home_and_is_never_limp():
    link = Far()
    arm = AtHome(link, (1.0, 0.01), (0.5, 0.05))
    arm.release()
    assert not link.chunks  # limp, as it was found
    arm.enable()
    (way,) = link.chunks
    assert len(way.rows) == 40 and way.rows[-1] == (1.0, 0.01)  # 1 rad at 0.5 rad/s, in rows of 50 ms
    steps = np.diff([(0.0, 0.0), *way.rows], axis=0)
    assert np.abs(steps).max(0) == pytest.approx([0.025, 0.00025]) and way.t_ns > 0
    assert link.t >= way.t_ns + 40 * way.dt_ns
    link.q = (0.0, 0.0)
    arm.release()
    arm.enable()
    assert link.acts == ["enable"] and link.q == (1.0, 0.01)
    assert [c.number for c in link.chunks] == [1, 2]


# The doctor


def rows_of(words, **deeds):
    with serving(Twin(plant=Plant(), lockstep=True), "unix") as (port, remote, _):
        for name, given in deeds.items():
            remote(name, **given)
        return preflight.table_of(preflight.preflight(read([*words, f"robot.port={port}"])))


@pytest.mark.parametrize("deed, given, row, said", [
    ("remove", {"motor": 3}, "motors", "5 of 6 answer; 3 (elbow_flex) does not"),
    ("become", {"motor": 2, "firmware": "3.9"}, "firmware", "3.6, 3.9"),
    ("heat", {"motor": 1, "celsius": 65.0}, "temperature", "65 °C"),
    ("force", {"motor": 4, "bits": 32}, "faults", "wrist_flex: overload"),
    ("supply", {"volts": 3.5}, "supply", "3.5 to 3.5 V; too low"),
    ("swap", {"motor": 1, "other": 2}, "arm", "their ids are swapped"),
])  # fmt: skip
def test_the_doctor_finds_what_is_wrong_with_an_arm(monkeypatch, deed, given, row, said):
    monkeypatch.setattr(preflight, "_priority", lambda: ("priority", True, "", ""))
    words = ["robot=so101_twin", "robot.options={slack_ms: 300}"]
    rows = rows_of(words, **{deed: given})
    assert not rows[row]["ok"] and said in rows[row]["found"] + rows[row]["remedy"] and rows[row]["remedy"]
    assert all(r["ok"] for name, r in rows.items() if name in ("station", "owner", "port"))


def test_the_doctor_passes_a_sound_station_and_says_by_its_exit_code_what_is_not(monkeypatch, capsys):
    assert main(["doctor", "--station", "robot=so101_sim", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"station", "owner", "arm", "temperature", "faults", "pose", "priority"} == set(rows)
    assert main(["doctor", "--station", "robot=so101", "robot.calibration=nowhere.yaml", "--json"]) == 2
    rows = json.loads(capsys.readouterr().out)
    assert not rows["station"]["ok"] and rows["station"]["remedy"] == "make one with `polyarm calibrate`"
    for words, said in (
        (["robot=so101"], "with --station only"),
        (["--station", "robot=so101", "train.steps=3"], "not 'train.steps=3'"),
    ):
        assert main(["doctor", *words]) == 2 and said in capsys.readouterr().err


def test_the_doctor_measures_a_camera(monkeypatch, tmp_path):
    _, eye = table(tmp_path, monkeypatch)
    eye.rate_hz = 1.0
    assert preflight._camera(read(["robot=so101"]), "front").startswith("32 x 24, ")
    eye.rate_hz = 1e9
    row = preflight._tried("camera front", lambda: preflight._camera(read(["robot=so101"]), "front"))
    assert not row[1] and "give it more light" in row[3] and not eye.open_now


# The demo


def test_the_demo_deploys_its_policy_beside_the_simulator(run, tmp_path, monkeypatch):
    told = {}

    def fake(source, words, robot, command):
        told.update(source=source, words=words, robot=robot, command=command)
        short = dict.fromkeys(
            ("estimator", "success_rate", "interval", "mean_steps", "n", "slips", "lateness_ms", "simulator", "ahead"),
            1,
        )
        return short | {"robot": {"name": robot.name, "clock": robot.clock}}

    monkeypatch.setattr(deployment, "deploy", fake)
    (tmp_path / "result.json").write_text(json.dumps({"success_rate": 0.5}))
    found = demo_command._deploy(run, ["train.steps=3", "deploy.episodes=50", "robot.linger_s=5"], tmp_path, "wall")
    assert told["robot"] == read(["robot=so101_twin", "robot.clock=wall", "robot.linger_s=5"]) and told["words"] == [
        "deploy.episodes=50"
    ]
    assert result_of(tmp_path) == {"success_rate": 0.5, "deployment": found} and found["clock"] == "wall"
    assert (
        told["command"] == f"polyarm deploy {run} robot=so101_twin robot.clock=wall robot.linger_s=5 deploy.episodes=50"
    )


def test_the_demo_takes_one_clock(capsys):
    assert main(["demo", "--deploy", "--deploy=wall"]) == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.timing
def test_a_station_of_a_real_arm_is_driven_from_home_to_home_and_left_holding(tmp_path):
    """The twin as if it were an arm: its port and calibration, processes by the clock, and nobody who sees its truth. Red where the
    torque is off between episodes or after them, or an episode begins elsewhere."""
    robot = replace(read(["robot=so101_twin", "robot.clock=wall"]), name=f"table-{time.monotonic_ns()}")
    with bringup.standing(robot) as there:
        remote = bringup.Remote(there.port)
        real = replace(there, estimator=None, linger_s=5.0)
        made = Table(real, ObsSpace((), 20.0), lambda seed: None, lambda: False)
        with bringup.bring_up(real, made) as world:
            for _ in range(2):
                seen, _ = world.reset(seed=[0])
                np.testing.assert_allclose(seen["joint_pos"][0], real.home, atol=0.03)
                for k in range(20):
                    world.step(seen["joint_pos"] + np.float32(0.01 * k))
                assert bringup.said(world)["state"] in ("RUN", "HOLD")
            away = np.abs(np.array(remote("truth")["q"]) - real.home).max()
        truth = remote("truth")
        assert away > 0.1 and all(truth["torque"])
        remote.close()


def test_an_arm_that_its_supervisor_holds_still_says_what_is_known(monkeypatch):
    """Its process is dead, and its figures with it; episodes played before are a result all the same. Mutation: the page as it is."""
    world = RobotWorld.__new__(RobotWorld)
    world.link = Daemon.__new__(Daemon)
    monkeypatch.setattr(Daemon, "status", lambda self: {"state": "FAULT", "why": "the arm's process died"})
    now = bringup.said(world)
    assert now["state"] == "FAULT" and now["late_ms"] == {} and now["counts"] == {} and now["priority"] == ""
