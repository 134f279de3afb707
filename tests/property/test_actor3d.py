"""3D Diffuser Actor as a policy: what it is shown, what it learns and what it executes, in both of its settings."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from polyarm.encoders.language import Instruction
from polyarm.encoders.pyramid import ConvMaps, Pyramid
from polyarm.policies.actor3d import ActorPolicy
from polyarm.policies.generate.angle import Schedule, ddpm, linear_flow
from polyarm.policies.generate.forms import Diffusion, Flow, LogitNormal
from polyarm.policies.generate.sample import Sampler, ancestral, euler
from polyarm.policies.nets.actor import ActorHead, Answer, farthest, sparsest
from polyarm.policies.nets.rotary import AdaLN
from polyarm.policies.nets.scene import SceneEncoder
from polyarm.policies.policy import clip_losses, plan, require_policy
from polyarm.rotation import CHANNELS
from polyarm.spec import ActionSpace, Clip, ObsSpace, Scale, Stream, UserError
from polyarm.text import text_row

XYZ = ("x", "y", "z")
IMAGE, POINTS = (
    Stream("front", "image", (16, 16, 3), frame="front"),
    Stream("front_points", "points", (16, 16, 3), frame="base"),
)
TCP = Stream("tcp", "state", (4,), ("width", *XYZ), ("m",) * 4, "base", Scale.identity(4))
SPACE = ObsSpace((IMAGE, POINTS, TCP), 10.0)
TOLD = ObsSpace((*SPACE.streams, Stream("task", "text", (16,))), 10.0)
SIX = CHANNELS["rot6d_columns"]
SCALE = Scale((4.0, 4.0, 5.0, *(1.0,) * 6, 1.0), (-1.0, 0.5, 0.0, *(0.0,) * 6, 0.0), 1.0)
ACTION = ActionSpace(
    (*XYZ, *SIX, "gripper"),
    ("m",) * 3 + ("1",) * 7,
    "base",
    10.0,
    rotation="rot6d_columns",
    rotations=(3,),
    scale=SCALE,
)
RELATIVE = replace(ACTION, relative=tuple(f"tcp.{n}" if n in XYZ else "" for n in ACTION.names))
WEIGHTS = {"position": 30.0, "rotation": 10.0, "opening": 1.0}
POSITION, ROTATION = Schedule(100, "scaled_linear"), Schedule(100, "squaredcos_cap_v2")


def published(space=SPACE, action=ACTION, **other):
    return made(space, action, choose=farthest, **{
        "form": Diffusion(POSITION, "noise"), "rotation_schedule": ROTATION, "sampler": Sampler(ancestral, ddpm(POSITION)),
        "metres": False, **other,
    })  # fmt: skip


def successor(space=SPACE, action=ACTION, **other):
    return made(space, action, choose=sparsest, **{
        "form": Flow("velocity", LogitNormal(0.0, 1.5)), "rotation_schedule": None, "sampler": Sampler(euler, linear_flow(5)),
        "metres": True, "whole": True, **other,
    })  # fmt: skip


def made(space, action, choose, horizon=3, n_obs_steps=2, whole=False, cameras=None, width=24, **other):
    torch.manual_seed(0)
    encoder = partial(
        SceneEncoder, cameras=cameras, image=partial(Pyramid, trunk=partial(ConvMaps, channels=(8, 16, 16)), stride=4),
        text=partial(Instruction, width=8, layers=1, heads=2, features=4), width=24, heads=2, words_layers=1, gripper_layers=1,
        dropout=0.0, words_dropout=0.0, choose=choose, thin=4,
    )  # fmt: skip
    body = partial(
        ActorHead, width=width, heads=2, cross_layers=1, shared_layers=1, branch_layers=1, dropout=0.0, words_dropout=0.0,
        words_feed=whole, shared_words=0, branch_words=0, whole=whole,
    )  # fmt: skip
    settings = {
        "gripper": "tcp",
        "position": XYZ,
        "weights": WEIGHTS,
        "n_action_steps": horizon - n_obs_steps + 1,
    } | other
    return ActorPolicy("actor3d", space, action, horizon, n_obs_steps, encoder=encoder, body=body, **settings)


SETTINGS = pytest.mark.parametrize("setting", [published, successor])


def looked(b=2, o=2, told=None, seed=0):
    random = torch.Generator().manual_seed(seed)
    obs = {
        "front": torch.randint(256, (b, o, 16, 16, 3), generator=random, dtype=torch.uint8),
        "front_points": torch.rand(b, o, 16, 16, 3, generator=random),
        "tcp": torch.rand(b, o, 4, generator=random),
    }
    if told:
        obs["task"] = torch.from_numpy(text_row(told, 16).copy()).expand(b, o, 16)
    return obs


def actions(b=2, h=3, seed=1):
    return torch.rand(b, h, 10, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Knows(nn.Module):
    """A body that answers what it was told to."""

    def __init__(self, position, rotation, logits):
        super().__init__()
        self.answer, self.asked = Answer(position, rotation, logits), []

    def forward(self, rows, xyz, clock, scene):
        self.asked.append((rows, xyz, clock))
        return self.answer


@SETTINGS
def test_it_keeps_the_protocol(setting):
    policy = require_policy(setting(TOLD))
    clip = Clip(
        {k: v[:, None] for k, v in looked(told="lift").items()}, actions()[:, None], torch.ones(2, 1, dtype=torch.bool)
    )
    losses, _ = clip_losses(policy, clip, torch.Generator().manual_seed(0), noise_samples=2)
    assert set(losses) == {"loss", *WEIGHTS}
    losses["loss"].backward()
    never = {name for name, p in policy.named_parameters() if p.grad is None}
    assert never == {"encoder.text.head.weight", "encoder.text.head.bias"}  # the pooled feature, which is not asked for


def test_positions_and_rotations_walk_their_own_schedules():
    """The published tables of alpha bar. Mutations: one schedule for all, the rotation's at the position's angle."""
    policy = published()
    grid = policy.sampler.angles
    assert grid.shape == (101, 10)
    alpha = {step: grid[99 - step].cos() ** 2 for step in (0, 10, 25, 50, 75, 90, 99)}
    position = {0: 0.9999, 10: 0.996766, 25: 0.979241, 50: 0.891545, 75: 0.713701, 90: 0.573476, 99: 0.484590}
    rotation = {0: 0.999369, 10: 0.966717, 25: 0.835621, 50: 0.478265, 75: 0.133495, 90: 0.019544, 99: 0.0}
    for step, row in alpha.items():
        assert row[[0, 1, 2, 9]].tolist() == pytest.approx([position[step]] * 4, abs=1e-6)
        assert row[3:9].tolist() == pytest.approx([rotation[step]] * 6, abs=1e-6)
    assert not grid[-1].any()


@SETTINGS
def test_exact_answers_are_read_as_the_actions(setting):
    """A body that knows the noise, or the velocity, is read as the clean chunk at every angle, and sampling ends there; by
    flow in one step and in five. Mutations: read rotations by the position's schedule, swap the sign of the velocity."""
    action, noise = actions(), torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(3))
    policy = setting()
    scene, _ = policy.encode(looked(), ())
    told = noise if setting is published else noise - action
    logits = torch.logit((action[..., 9:] + 1) / 2)
    policy.body = Knows(told[..., :3], told[..., 3:9], logits)
    for step in (0, 2, len(policy.sampler.angles) - 2):
        phi = policy.sampler.angles[step].float().expand(2, *policy.sampler.angles[step].shape)
        wide = phi[:, None] if phi.ndim == 2 else phi[:, None, None]
        clean = policy.denoise(wide.cos() * action + wide.sin() * noise, phi, scene)
        assert torch.allclose(clean, action, atol=2e-3 if step == 0 and setting is published else 1e-4)
    if setting is successor:
        for steps in (1, 5):
            sampler = Sampler(euler, linear_flow(steps), limit=None)
            assert torch.allclose(sampler(policy.denoise, noise, scene, torch.Generator()), action, atol=1e-5)


def test_the_clock_is_the_step_and_coordinates_are_the_networks():
    """Published: the step's number, and scaled positions; successor: metres. Mutation: coordinates of the noised chunk
    before the form has entered it."""
    for setting, index in ((published, 40), (successor, 2)):
        policy = setting()
        policy.body = Knows(torch.zeros(2, 3, 3), torch.zeros(2, 3, 6), torch.zeros(2, 3, 1))
        x, phi = actions(), policy.sampler.angles[index].float()
        policy.denoise(x, phi.expand(2, *phi.shape), policy.encode(looked(), ())[0])
        rows, xyz, clock = policy.body.asked[0]
        if setting is published:
            assert clock.tolist() == pytest.approx([59, 59], abs=0.01)
            assert torch.equal(xyz, x[..., :3]) and torch.equal(rows, x[..., :9])
        else:
            assert clock.tolist() == pytest.approx([60, 60], abs=1e-3)
            entered = x[..., :9] / (phi.cos() + phi.sin())
            metres = (entered[..., :3] - torch.tensor([-1.0, 0.5, 0.0])) / torch.tensor([4.0, 4.0, 5.0])
            assert torch.allclose(rows, entered, atol=1e-6) and torch.allclose(xyz, metres, atol=1e-6)


@SETTINGS
def test_losses_are_mean_absolute_errors_by_their_weights(setting):
    """A position off by 0.1 costs 3. Mutations: squares, a sum in place of a mean, the rotation's weight for both."""
    policy, action = setting(), actions()
    scene, _ = policy.encode(looked(), ())
    action[..., 9] = action[..., 9].sign()
    random = torch.Generator().manual_seed(0)
    policy.form.draw(2, random)
    noise = torch.randn(2, 3, 10, generator=random)
    target = noise if setting is published else noise - action
    policy.body = Knows(target[..., :3] + 0.1, target[..., 3:9] - 0.2, 50 * action[..., 9:])
    found = policy.loss(action, scene, torch.Generator().manual_seed(0))
    assert float(found["position"]) == pytest.approx(3.0, rel=1e-4)
    assert float(found["rotation"]) == pytest.approx(2.0, rel=1e-4)
    assert float(found["opening"]) < 1e-6
    policy.body = Knows(target[..., :3], target[..., 3:9], torch.zeros(2, 3, 1))
    assert float(policy.loss(action, scene, random)["opening"]) == pytest.approx(0.693147, abs=1e-5)


@SETTINGS
def test_the_opening_is_answered_not_noised(setting):
    """Mutation: hand the opening's channel to the body."""
    policy, obs = setting(), looked()
    cond, _ = policy.encode(obs, ())
    x, phi = actions(), policy.sampler.angles[1].float()
    phi = phi.expand(2, *phi.shape)
    other = torch.cat((x[..., :9], -x[..., 9:]), dim=-1)
    assert torch.equal(policy.denoise(x, phi, cond), policy.denoise(other, phi, cond))


@SETTINGS
def test_relative_chunks_do_not_depend_on_where_the_scene_is(setting):
    """Points and gripper moved together: the chunk moves with them, to 1e-5. Mutations: shift the points alone, leave the
    gripper's history where it was."""
    policy, obs = setting(action=RELATIVE).eval(), looked()
    for module in policy.modules():
        if isinstance(module, AdaLN):  # untrained, it does not hear of the gripper
            nn.init.normal_(module.modulation[1].weight, std=0.3)
    shift = torch.tensor([0.7, -0.4, 0.9])
    moved = obs | {"front_points": obs["front_points"] + shift}
    moved["tcp"] = obs["tcp"] + torch.cat((torch.zeros(1), shift))
    first, second = (plan(policy, o, (), torch.Generator().manual_seed(0)).action for o in (obs, moved))
    assert torch.allclose(first[..., :3] + shift, second[..., :3], atol=1e-5)
    assert torch.allclose(first[..., 3:], second[..., 3:], atol=1e-5)


@SETTINGS
def test_absolute_chunks_depend_on_where_the_scene_is(setting):
    policy, obs = setting().eval(), looked()
    first, second = (policy.encode(o, ())[0].at.cos for o in (obs, obs | {"front_points": obs["front_points"] + 0.2}))
    assert not torch.allclose(first, second, atol=1e-3)


def test_tokens_lie_where_their_pixels_are():
    """A point map that is linear in the pixel: each token lies at its cell's middle. Mutations: rows and columns swapped,
    the oldest row in place of the newest."""
    policy, seen = successor(), {}
    rows = torch.arange(16.0)
    points = torch.stack((rows[:, None].expand(16, 16), rows[None].expand(16, 16), torch.zeros(16, 16)), dim=-1)
    obs = looked() | {"front_points": torch.stack((torch.zeros_like(points), points)).expand(2, 2, 16, 16, 3)}

    def place(xyz):
        seen["xyz"] = xyz
        return xyz

    policy.encoder(obs, place, torch.zeros(2, 2, 3))
    middles = 4 * torch.arange(4.0) + 1.5
    assert torch.allclose(seen["xyz"][0, :, 0], middles.repeat_interleave(4))
    assert torch.allclose(seen["xyz"][0, :, 1], middles.repeat(4))


def test_what_is_said_is_heard():
    policy = published(TOLD).eval()
    one, two = (
        plan(policy, looked(told=said), (), torch.Generator().manual_seed(0)).action for said in ("red", "blue")
    )
    assert not torch.allclose(one, two, atol=1e-4)


def test_two_cameras_are_paired_by_name():
    """Mutation: pair images and points in the order of the space."""
    names = {"front": "front_points", "wrist": "a_points"}
    extra = (replace(POINTS, name="a_points"), replace(IMAGE, name="wrist"))
    policy = successor(ObsSpace((*extra, *SPACE.streams), 10.0), cameras=names).eval()
    obs = looked()
    pair = {"wrist": obs["front"], "a_points": obs["front_points"] + 1}
    scene, _ = policy.encode(obs | pair, ())
    alone, _ = successor().eval().encode(obs, ())
    assert scene.tokens.shape[1] == 32 and torch.allclose(scene.at.sin[:, :16], alone.at.sin)


@pytest.mark.slow
@SETTINGS
def test_one_keypose_is_learnt_by_heart(setting):
    """Keypose mode: a chunk is one row. Learnt within 1 cm and with the right opening, for two scenes. Mutations: detach the
    scene, do not show it to the rows."""
    policy, steps = setting(horizon=1, n_obs_steps=1), 500
    obs = looked(o=1)
    row = torch.tensor([[0.1, -0.2, 0.1, 1, 0, 0, 0, 1, 0, 1], [0.4, 0.0, -0.1, 0, 1, 0, -1, 0, 0, -1]])
    clip = Clip({k: v[:, None] for k, v in obs.items()}, row[:, None, None], torch.ones(2, 1, dtype=torch.bool))
    random = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(policy.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        clip_losses(policy, clip, random, noise_samples=16)[0]["loss"].backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        found = plan(policy.eval(), obs, (), torch.Generator().manual_seed(1)).action[:, 0]
    assert (found[:, :3] - row[:, :3]).abs().max() < 0.01
    assert torch.equal(found[:, 9].sign(), row[:, 9])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"action": replace(ACTION, frame="world")}, "in frame 'base', the action in 'world'"),
        ({"action": replace(ACTION, scale=replace(SCALE, reach=2.5))}, "task.action_scale=limits"),
        ({"position": ("x", "y", "zz")}, "unknown action channel of policy.position 'zz'"),
        ({"gripper": "tpc"}, "unknown observation stream 'tpc'"),
        ({"width": 36}, "36 wide"),
        ({"space": ObsSpace((IMAGE, TCP), 10.0)}, "point maps none"),
        ({"space": ObsSpace((*SPACE.streams, replace(TCP, name="cube")), 10.0)}, "does not look at stream 'cube'"),
        ({"space": ObsSpace((IMAGE, replace(POINTS, shape=(512, 3)), TCP), 10.0)}, "give every pixel its point"),
        ({"cameras": {"front": "rear"}}, "unknown stream of kind points 'rear'"),
        ({"action": replace(ACTION, rotation="rotvec")}, "task.action_rotation=rot6d_columns"),
        ({"action": replace(ACTION, rotation="none", rotations=())}, "neither position nor rotation"),
        ({"form": Diffusion(POSITION), "rotation_schedule": Schedule(50)}, "of 100 and of 50 steps side by side"),
        ({"rotation_schedule": ROTATION}, "stands beside a DDPM schedule"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        successor(**change)
