"""3D Diffuser Actor as a policy: what it is shown, what it learns and what it executes, in both of its settings."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from polyarm.encoders.language import Instruction
from polyarm.encoders.points import ZoomAboutCentre, ZoomAndCrop
from polyarm.encoders.pyramid import ConvMaps, Pyramid
from polyarm.policies.actor3d import ActorPolicy
from polyarm.policies.generate.angle import Schedule, ddpm, linear_flow
from polyarm.policies.generate.forms import Diffusion, Flow, LogitNormal
from polyarm.policies.generate.sample import Sampler, ancestral, euler
from polyarm.policies.nets.actor import ActorHead, Answer, farthest, sparsest
from polyarm.policies.nets.rotary import AdaLN, turn_at
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
JOINTS = Stream("joints", "state", (1,), ("elbow",), ("rad",), "base", Scale.identity(1))
GOAL = Stream("goal", "state", (4,), (*XYZ, "lit"), ("m", "m", "m", "1"), "base", Scale.identity(4))
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


def made(space, action, choose, horizon=3, n_obs_steps=2, whole=False, width=24, scene=None, **other):
    torch.manual_seed(0)
    encoder = partial(
        SceneEncoder, image=partial(Pyramid, trunk=partial(ConvMaps, channels=(8, 16, 16)), stride=4),
        text=partial(Instruction, width=8, layers=1, heads=2, features=4), width=24, heads=2, words_layers=1, gripper_layers=1,
        dropout=0.0, words_dropout=0.0, choose=choose, thin=4, **SCENE | (scene or {}),
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


SCENE = {"cameras": None, "resize": "nearest", "places": None, "gripper_state": False, "augment": None}
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

    def keep(self, scene):
        return scene

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
    hears(policy)
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
    seen = {}
    rows = torch.arange(16.0)
    points = torch.stack((rows[:, None].expand(16, 16), rows[None].expand(16, 16), torch.zeros(16, 16)), dim=-1)
    obs = looked() | {"front_points": torch.stack((torch.zeros_like(points), points)).expand(2, 2, 16, 16, 3)}

    def place(xyz):
        seen.setdefault("xyz", xyz)
        return xyz

    for resize, middle in (("bilinear", 1.5), ("nearest", 2.0)):
        policy = successor(scene={"resize": resize})
        seen.clear()
        policy.encoder(obs, place)
        middles = 4 * torch.arange(4.0) + middle
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
    policy = successor(ObsSpace((*extra, *SPACE.streams), 10.0), scene={"cameras": names}).eval()
    obs = looked()
    pair = {"wrist": obs["front"], "a_points": obs["front_points"] + 1}
    scene, _ = policy.encode(obs | pair, ())
    alone, _ = successor().eval().encode(obs, ())
    assert scene.tokens.shape[1] == 32 and torch.allclose(scene.at.sin[:, :16], alone.at.sin)


def hears(policy):
    """Modulation that is not zero any more, as after training: the head hears of the gripper."""
    for module in policy.modules():
        if isinstance(module, AdaLN):
            nn.init.normal_(module.modulation[1].weight, std=0.3)
    return policy.eval()


def act(policy, obs):
    with torch.no_grad():
        return plan(policy, obs, (), torch.Generator().manual_seed(0)).action


PLACED = ObsSpace((*SPACE.streams, GOAL), 10.0)


@SETTINGS
def test_a_goal_that_no_camera_sees_is_a_token_where_it_lies(setting):
    """Kept by the thinning, told what its stream has beside the place, and moved with the scene where chunks are relative.
    Mutations: the goal's token in the scene alone; its place not in the network's coordinates; the rest not told."""
    policy, obs = hears(setting(PLACED)), looked() | {"goal": torch.rand(2, 2, 4)}
    scene, _ = policy.encode(obs, ())
    bare, _ = setting().eval().encode(looked(), ())
    assert scene.tokens.shape[1] == bare.tokens.shape[1] + 1 and scene.few.shape[1] == bare.few.shape[1] + 1
    assert torch.equal(scene.few[:, -1], scene.tokens[:, -1])
    xyz = obs["goal"][:, -1:, :3] if setting is successor else obs["goal"][:, -1:, :3] * torch.tensor(SCALE.gain[:3]) + torch.tensor(SCALE.offset[:3])  # fmt: skip
    assert torch.allclose(scene.at.cos[:, -1:], turn_at(xyz, 24).cos, atol=1e-6)
    moved, lit = obs["goal"] + torch.tensor([0.3, 0, 0, 0]), obs["goal"] + torch.tensor([0, 0, 0, 1.0])
    for other in (moved, lit):
        assert not torch.allclose(act(policy, obs), act(policy, obs | {"goal": other}), atol=1e-4)
    past = torch.cat((moved[:, :1], obs["goal"][:, 1:]), 1)
    assert torch.equal(act(policy, obs), act(policy, obs | {"goal": past}))  # the newest row is where it is
    relative = hears(setting(PLACED, RELATIVE))
    shift = torch.tensor([0.7, -0.4, 0.9])
    there = obs | {"front_points": obs["front_points"] + shift}
    there["tcp"], there["goal"] = obs["tcp"] + torch.cat((torch.zeros(1), shift)), obs["goal"] + torch.cat((shift, torch.zeros(1)))  # fmt: skip
    assert torch.allclose(act(relative, obs)[..., :3] + shift, act(relative, there)[..., :3], atol=1e-5)
    with pytest.raises(UserError, match="does not look at stream 'goal'"):
        setting(PLACED, scene={"places": []})


def test_the_grippers_state_is_told_unless_as_published():
    """Mutation: the state of the newest row for all."""
    obs = looked()
    wider = obs | {"tcp": obs["tcp"] + torch.tensor([1.0, 0, 0, 0]) * torch.tensor([1.0, 0]).view(1, 2, 1)}
    for told in (False, True):
        policy = hears(successor(scene={"gripper_state": told}))
        assert torch.allclose(act(policy, obs), act(policy, wider), atol=1e-5) != told


UNKNOWN = torch.zeros(16, 16, dtype=torch.bool)
UNKNOWN[:8, 2:10] = True
"""Of 4 x 4 cells, whose middles are pixels 2, 6, 10 and 14: four of which nothing is known."""


@SETTINGS
def test_where_depth_is_not_known_nothing_is_seen(setting):
    """Whatever the picture shows there, the chunk is the same, finite, and so are gradients; a known pixel counts. Mutations:
    leave the mask out of the rows' look, the gripper's look, the thinking together, or the choice; zeros for nan."""
    policy, obs = hears(setting()), looked()
    hidden = obs["front_points"].masked_fill(UNKNOWN[..., None], torch.nan)
    scene, _ = policy.encode(obs | {"front_points": hidden}, ())
    assert scene.known.sum(1).tolist() == [12, 12] and scene.few_known.all()
    at = torch.nonzero(~scene.known[0])[:, 0].tolist()
    assert at == [0, 1, 4, 5]
    few = torch.ones(16, 16, dtype=torch.bool)
    few[12:, :12] = False  # three cells are known, and four are thought with
    scarce = obs["front_points"].masked_fill(few[..., None], torch.nan)
    policy.encoder.image = Painted()
    shown = {"front_points": hidden, "front": torch.zeros_like(obs["front"])}
    painted = shown["front"].clone()
    painted[..., UNKNOWN, :] = 200
    other = shown["front"].clone()
    other[..., 12:, 12:, :] = 200
    first = act(policy, obs | shown)
    assert first.isfinite().all() and torch.allclose(first, act(policy, obs | shown | {"front": painted}), atol=1e-6)
    assert not torch.allclose(first, act(policy, obs | shown | {"front": other}), atol=1e-5)
    painted[..., few, :] = 200
    first, second = (act(policy, obs | {"front": x, "front_points": scarce}) for x in (shown["front"], painted))
    assert first.isfinite().all() and torch.allclose(first, second, atol=1e-6)
    policy = setting().train()
    cond, _ = policy.encode(obs | {"front_points": hidden}, ())
    sum(policy.loss(actions(), cond, torch.Generator().manual_seed(0)).values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())
    with pytest.raises(UserError, match="no token of front_points has a known place"):
        policy.encode(obs | {"front_points": torch.full_like(hidden, torch.nan)}, ())


class Painted(nn.Module):
    """The red of each cell's middle pixel as its features: no cell sees another's."""

    def forward(self, image):
        return image[:, 2::4, 2::4, :1].permute(0, 3, 1, 2).expand(-1, 24, -1, -1) * torch.linspace(-1, 1, 24)[:, None, None] / 100  # fmt: skip


def test_unknown_tokens_are_kept_last():
    """And tell nothing of who is lonely. Mutations: their distances in the mean; the first token first though not known."""
    x = torch.tensor([0.0, 1, 2, 3, 4, 50, 90]).view(1, -1, 1)
    known = torch.tensor([[False, True, True, True, True, True, False]])
    assert farthest(x, 3, known).tolist() == [[1, 5, 4]]
    assert sparsest(x, 2, known, neighbours=2).tolist()[0][0] == 5
    beside = torch.tensor([0.0, 1, 2, 3, 10, 11, 99]).view(1, -1, 1)
    told = torch.tensor([[True, True, True, True, True, False, True]])
    assert sparsest(beside, 2, told, neighbours=2).tolist() == [[6, 4]]
    for choose in (farthest, sparsest):
        assert set(choose(x, 7, known)[0].tolist()[:5]) == {1, 2, 3, 4, 5}


def test_what_the_rows_ask_of_the_scene_is_made_once():
    """The same answer whether keys and values are made at each step or before. Mutations: keys turned to where the
    chosen tokens lie; made at each step all the same."""
    policy = hears(published(TOLD))
    cond, _ = policy.encode(looked(told="lift"), ())
    assert len(cond.kept) == len(policy.body.look.attend) and cond.kept[0].keys.shape == (2, 2, 16, 12)
    x, phi = actions(), policy.sampler.angles[3].float().expand(2, 10)
    assert torch.equal(policy.denoise(x, phi, cond), policy.denoise(x, phi, cond._replace(kept=())))
    made = []
    for layer in policy.body.look.attend:
        layer.attention.keep = lambda *_, **__: made.append(1)
    policy.denoise(x, phi, cond)
    assert not made


@pytest.mark.parametrize("augment", [ZoomAndCrop(), ZoomAboutCentre()])
def test_a_pixel_keeps_its_point_through_what_training_does(augment):
    """Pictures whose colours say their point: so they do after augmentation; acting changes nothing. Mutations: augment the
    points alone, or with another draw; augment without a generator; the generator not handed on by the policy."""
    policy, seen = successor(scene={"augment": augment}), []
    rows = torch.arange(16.0)
    points = torch.stack((rows[:, None].expand(16, 16), rows[None].expand(16, 16), torch.zeros(16, 16)), dim=-1)
    both = {"front": (8 * points).byte().expand(3, 2, 16, 16, 3), "front_points": points.expand(3, 2, 16, 16, 3)}
    obs = {"tcp": torch.rand(3, 2, 4), **both}
    lifted = policy.encoder._lifted

    class Cells(nn.Module):
        def forward(self, image):
            return image[:, 2::4, 2::4].permute(0, 3, 1, 2).float().repeat(1, 8, 1, 1)

    def watched(*given):
        seen.append(lifted(*given))
        return seen[-1]

    policy.encoder.image, policy.encoder._lifted = Cells(), watched
    policy.encode(obs, (), torch.Generator().manual_seed(2))
    policy.encode(obs, ())
    for tokens, xyz in seen:
        assert torch.equal(tokens[..., :3], 8 * xyz)
    assert not torch.equal(seen[0][1], seen[1][1]) and torch.equal(seen[1][1][0], points[2::4, 2::4].reshape(16, 3))
    assert not torch.equal(seen[0][1][0], seen[0][1][1])  # each of the batch its own


def test_two_schedules_are_not_asked_at_one_angle():
    """As a mixture with a flow would. Mutation: read both by the position's."""
    policy = published().eval()
    with pytest.raises(UserError, match="schedules of their own"):
        policy.denoise(actions(), torch.full((2,), 0.5), policy.encode(looked(), ())[0])


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
        ({"space": ObsSpace((*SPACE.streams, JOINTS), 10.0)}, "does not look at stream 'joints'"),
        ({"scene": {"resize": "cubic"}}, "unknown encoder.resize 'cubic'"),
        ({"scene": {"places": ["cube"]}}, "stream with channels x, y, z in encoder.places 'cube'"),
        ({"space": ObsSpace((IMAGE, replace(POINTS, shape=(512, 3)), TCP), 10.0)}, "give every pixel its point"),
        ({"scene": {"cameras": {"front": "rear"}}}, "unknown stream of kind points 'rear'"),
        ({"action": replace(ACTION, rotation="rotvec")}, "task.action_rotation=rot6d_columns"),
        ({"action": replace(ACTION, rotation="none", rotations=())}, "neither position nor rotation"),
        ({"form": Diffusion(POSITION), "rotation_schedule": Schedule(50)}, "of 100 and of 50 steps side by side"),
        ({"rotation_schedule": ROTATION}, "stands beside a DDPM schedule"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        successor(**change)
