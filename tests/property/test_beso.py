"""BESO: goals, their dropout and guidance, goals from the future, and what a trained one can do."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from polyarm.datasets.goals import Goals, future, uniform
from polyarm.datasets.windows import Windows
from polyarm.encoders.fuse import Fuse
from polyarm.encoders.state import State
from polyarm.policies.beso import keep
from polyarm.policies.generate.angle import exponential, linear_sigma
from polyarm.policies.generate.forms import Karras, LogLogistic
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.policy import chunk, clip_loss
from polyarm.spec import ActionSpace, Clip, ObsSpace, Scale, Spec, Stream, UserError
from tests.from_yaml import BesoPolicy, DiffusionGpt


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def spec(width=3):
    names = tuple("abcdef"[:width])
    arm = Stream("arm", "state", (width,), names, scale=Scale((0.5,) * width, (0.0,) * width))
    return Spec(ObsSpace((arm,), 10.0), ActionSpace(("x", "y"), ("m", "m"), "base", 10.0, scale=Scale.identity(2)))


def beso(horizon=6, n_obs_steps=2, goal_steps=2, width=24, std=0.2, obs_width=3, causal=True, **settings):
    """A small BESO; `std` spreads its weights so that what it answers depends on what it sees."""
    torch.manual_seed(0)
    of = spec(obs_width)
    policy = BesoPolicy(
        "beso", of.obs, of.action, horizon, n_obs_steps, horizon - n_obs_steps + 1, encoder=partial(Fuse, state=State),
        body=partial(
            DiffusionGpt, goals=goal_steps, width=width, layers=2, heads=2, p_drop_attn=0.0, p_drop_resid=0.0, causal=causal
        ),
        form=Karras(law=LogLogistic(), sigma_min=0.005, sigma_max=1.0),
        sampler=Sampler(euler, exponential(3), limit=None, shrink=True), goal_steps=goal_steps, **settings,
    )  # fmt: skip
    if std:
        for p in policy.parameters():
            torch.nn.init.normal_(p, std=std)
    return policy


def obs(b=64, **goals):
    return {"arm": normal(b, 2, 3)} | {f"goal.{name}": x for name, x in goals.items()}


def answer(policy, seen):
    phi = torch.linspace(0.1, 0.7, len(seen["arm"]))
    return policy.denoise(normal(len(phi), 6, 2, seed=9), phi, policy.encode(seen, ())[0])


def test_guidance_is_a_line_through_the_two_models():
    """BESO, sections 5 and 11.8: D = D_free + scale (D_goal - D_free) on clean actions; scale 0 does not hear the goal, 1 is
    the conditional model, and a policy without a goal is the model with goal zero."""
    one, two = obs(arm=normal(64, 2, 3, seed=1)), obs(arm=normal(64, 2, 3, seed=2))
    zero = obs(arm=torch.zeros(64, 2, 3))
    at = {scale: beso(guidance=scale) for scale in (0.0, 1.0, 1.5)}
    assert torch.equal(answer(at[0.0], one), answer(at[0.0], two))
    torch.testing.assert_close(answer(at[0.0], one), answer(at[1.0], obs()))
    assert torch.equal(answer(at[1.0], obs()), answer(at[1.0], zero))
    assert (answer(at[1.0], one) - answer(at[1.0], two)).abs().max() > 1e-2
    want = answer(at[1.0], obs()) + 1.5 * (answer(at[1.0], one) - answer(at[1.0], obs()))
    torch.testing.assert_close(answer(at[1.5], one), want, rtol=1e-4, atol=1e-5)


def test_a_goal_that_is_not_there_is_zero_after_scaling():
    """BESO, section 4: windows without a future keep a zero goal, which is also what guidance takes for "no goal"."""
    policy, goal = beso(), normal(4, 2, 3, seed=1)
    seen = {"arm": normal(4, 2, 3), "goal.arm": goal, "goal.given": torch.tensor([True, False, True, False])}
    goals = policy.encode(seen, ())[0].goals
    assert not goals[[1, 3]].any()
    torch.testing.assert_close(goals[[0, 2]], 0.5 * goal[[0, 2]])


def test_only_the_shown_channels_of_a_goal_reach_the_network():
    """BESO, section 3: block-push goals keep the blocks' positions and hide the rest. The states keep everything."""
    policy, goal = beso(goal_channels=[0, 2]), normal(64, 2, 3, seed=1)
    goals = policy.encode(obs(arm=goal), ())[0].goals
    torch.testing.assert_close(goals[..., [0, 2]], 0.5 * goal[..., [0, 2]])
    assert not goals[..., 1].any()
    other = goal + torch.tensor([0.0, 5.0, 0.0])
    assert torch.equal(answer(policy, obs(arm=goal)), answer(policy, obs(arm=other)))
    with pytest.raises(UserError, match="an encoder with 3 features: give 0 to 2"):
        beso(goal_channels=[3])


@pytest.mark.parametrize("rows", [False, True])
def test_goal_dropout_hides_numbers_or_rows(rows):
    """BESO, section 5: Bernoulli(p) by single number as released, by row of the batch as written; never while acting."""
    n, p = 4000, 0.1
    policy, goal = beso(goal_dropout=p, drop_rows=rows), torch.ones(n, 2, 3)
    seen = {"arm": normal(n, 2, 3), "goal.arm": goal}
    hidden = (policy.encode(seen, (), generator())[0].goals == 0).float()
    draws = n if rows else hidden.numel()
    assert hidden.mean().item() == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / draws))
    whole = hidden.flatten(1).mean(1)
    partly = ((whole > 0) & (whole < 1)).float().mean().item()
    all_but_none = 1 - p**6 - (1 - p) ** 6
    assert partly == pytest.approx(0.0 if rows else all_but_none, abs=4.5 * 0.5 / math.sqrt(n) * (not rows))
    assert policy.encode(seen, ())[0].goals.all()
    again = policy.encode(seen, (), generator())[0].goals
    assert torch.equal(hidden == 1, again == 0)  # the generator alone decides
    assert set(keep(goal, 0.5, rows, generator()).unique().tolist()) == {0.0, 1.0}


def test_wrong_goals_say_what_is_right():
    """Errors name the value, the expectation and the remedy."""
    with pytest.raises(UserError, match=r"a goal of 1 rows for policy.goal_steps=2"):
        beso().encode(obs(arm=normal(64, 1, 3)), ())
    two = ObsSpace((spec().obs["arm"], Stream("hand", "state", (1,), ("w",), scale=Scale.identity(1))), 10.0)
    policy = beso()
    policy.obs_space = two
    with pytest.raises(UserError, match="unknown goal stream 'goal.hand'"):
        policy.encode(obs(arm=normal(64, 2, 3)) | {"hand": normal(64, 2, 1)}, ())


def test_a_goal_starts_anywhere_in_what_is_left_and_nowhere_else():
    """BESO, section 4: a segment of length G that starts in [end, T - G), uniformly; none if that is empty."""
    n, end, stop, length = 60_000, 40, 50, 3
    share = uniform(0, np.zeros(n, np.int64), np.arange(n))
    rows, given = future(np.full(n, end), np.full(n, stop), length, share)
    assert given.all() and (np.diff(rows, axis=1) == 1).all()
    counts = np.bincount(rows[:, 0], minlength=stop)
    starts = np.arange(end, stop - length)
    assert counts.sum() == counts[starts].sum() == n
    assert ((counts[starts] - n / 7) ** 2 / (n / 7)).sum() < 27.9  # chi-square, 6 degrees of freedom, 1e-4
    late = np.arange(stop - 6, stop + 9)
    rows, given = future(late, np.full(len(late), stop), length, np.full(len(late), 0.999))
    assert given.tolist() == (late < stop - length).tolist()
    assert (rows[~given] < stop).all() and (rows[~given] >= 0).all()


@pytest.mark.parametrize("last", [False, True])
def test_a_goal_never_shows_another_episode(last):
    """Also where an episode is shorter than a goal: its first row repeats. Mutations: rows kept from row 0 alone; rows that
    wrap to the end of the file."""
    lengths = [3, 30, 1, 9, 2, 4]
    of = demos(lengths)
    windows = Windows(of, of.spec, horizon=4, n_obs_steps=2, n_action_steps=2, pad_after=3)
    for length in (1, 3, 5, 40):
        goals = Goals(windows, of, of.spec, length=length, seed=0, after=2, last=last)
        clip = goals.__getitems__(np.arange(2 * len(goals)))
        goal, given = clip.obs["goal.arm"][:, 0].numpy(), clip.obs["goal.given"][:, 0].numpy()
        episode = np.tile(windows.episode, 2)
        assert (goal[..., 0] == episode[:, None]).all() and set(episode) == set(range(6))
        rows = np.array(lengths)[episode]
        assert (goal[..., 1] >= 0).all() and (goal[..., 1] < rows[:, None]).all()
        assert (goal[~given, -1, 1] == rows[~given] - 1).all() and (last or not given[rows <= length].any())
        assert (goal[rows < length, 0, 1] == 0).all() and np.isin(np.diff(goal[..., 1]), (0, 1)).all()


def test_goals_share_the_rows_of_their_windows():
    """A mutation that turns this red: streams read again from the file, image by image."""
    of = demos([9, 12])
    windows = Windows(of, of.spec, horizon=4, n_obs_steps=2, n_action_steps=2)
    read = []
    of.stream = read.append
    goals = Goals(windows, of, of.spec, length=1, seed=0)
    assert goals._streams["arm"] is windows.rows("arm") and not read


def test_goal_numbers_depend_on_seed_epoch_and_window_alone():
    """splitmix64: uniform by quantiles, uncorrelated between neighbours, whatever the order they are asked in."""
    index = np.arange(50_000)
    one = uniform(3, np.full_like(index, 2), index)
    assert np.quantile(one, [0.05, 0.25, 0.5, 0.75, 0.95]) == pytest.approx([0.05, 0.25, 0.5, 0.75, 0.95], abs=0.01)
    for other in (
        uniform(4, np.full_like(index, 2), index),
        uniform(3, np.full_like(index, 3), index),
        np.roll(one, 1),
    ):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.025
    shuffled = np.random.default_rng(0).permutation(index)
    assert (uniform(3, np.full_like(index, 2), shuffled) == one[shuffled]).all()


def demos(lengths, width=3):
    """Row r of the data holds (episode, row within it, r)."""
    ends = np.cumsum(lengths)
    within = np.concatenate([np.arange(n) for n in lengths])
    arm = np.stack([np.repeat(np.arange(len(lengths)), lengths), within, np.arange(ends[-1])], 1).astype("f4")
    streams = {"arm": arm, "action": arm[:, :2]}
    return SimpleNamespace(spec=spec(width), episode_ends=ends, stream=streams.__getitem__)


@pytest.mark.parametrize("k", [1, 3])
def test_goals_come_from_later_in_the_same_episode(k):
    """BESO, section 4, for every window of every episode and two epochs, in batches of any order."""
    of = demos([30, 12, 9, 25])
    windows = Windows(of, of.spec, horizon=4, n_obs_steps=2, n_action_steps=2, k=k)
    goals, n = Goals(windows, of, of.spec, length=2, seed=0), len(windows)
    items = np.random.default_rng(0).permutation(2 * n)
    clip = goals.__getitems__(items)
    assert torch.equal(clip.action, windows.__getitems__(items % n).action)
    goal, given = clip.obs["goal.arm"].numpy(), clip.obs["goal.given"].numpy()
    assert goal.shape == (2 * n, k, 2, 3) and given.shape == (2 * n, k)
    episode = windows.episode[items % n]
    end = windows.start[items % n, None] + 2 * np.arange(k) + 4
    left = np.array([30, 12, 9, 25])[episode][:, None] - 2 - end
    assert (given == (left > 0)).all() and given.any() and not given.all()
    assert (goal[..., 0] == episode[:, None, None]).all()
    assert (goal[..., 0, 1] >= end)[given].all() and (goal[..., 0, 1] < end + left)[given].all()
    assert (np.diff(goal[..., 1], axis=-1) == 1).all()
    alone = goals.__getitem__(int(items[5]))
    assert torch.equal(alone.obs["goal.arm"][0], clip.obs["goal.arm"][5])
    order = np.argsort(items)
    first, second = goal[order][:n], goal[order][n:]
    assert (first != second).any(axis=(1, 2, 3)).mean() > 0.3  # another epoch, other goals


def test_goals_of_chunks_show_how_an_episode_ends():
    """A policy of chunks draws goals from after its newest observation; where nothing is left the goal is the last row.
    Mutations: draw after the whole chunk; hide the goal of late windows."""
    of = demos([30, 12])
    windows = Windows(of, of.spec, horizon=8, n_obs_steps=2, n_action_steps=4, pad_after=6)
    goals = Goals(windows, of, of.spec, length=1, seed=0, after=2, last=True)
    clip = goals.__getitems__(np.arange(len(goals)))
    row, given = clip.obs["goal.arm"][:, 0, 0, 1].numpy(), clip.obs["goal.given"]
    last = np.array([29, 11])[windows.episode]
    assert given.all() and (row >= np.minimum(windows.start + 2, last)).all() and (row <= last).all()
    inside = (row < windows.start + 8) & (windows.start + 8 < last)
    assert inside.any() and (row == last)[windows.start + 2 >= last].all() and (windows.start + 2 >= last).any()


def fit(policy, clip_of, steps, lr=2e-3):
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr)
    noise = generator(1)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * i / steps)) / 2
        loss, _ = clip_loss(policy, clip_of(noise), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.eval()


def test_three_steps_keep_both_modes():
    """BESO, abstract: multi-modal behaviour in three denoising steps. One observation, two chunks that occur equally often
    and lie 1.1 apart (root mean square): samples are one of them as a whole, each as often as the other, where regression
    would answer 0. It takes rows that see each other: with the published causal mask the first rows decide alone, and
    four in ten samples are part one, part the other."""
    up = torch.stack([torch.linspace(0.5, 0.8, 6), torch.linspace(-0.4, 0.7, 6)], 1)

    def clip_of(noise):
        sign = torch.randint(2, (64, 1, 1, 1), generator=noise) * 2.0 - 1
        return Clip({"arm": torch.zeros(64, 1, 2, 3)}, sign * up, torch.ones(64, 1, dtype=torch.bool))

    policy = beso(std=0, width=32, causal=False)
    policy.form = Karras(law=LogLogistic(), sigma_min=0.05, sigma_max=1.0)
    policy.sampler = Sampler(euler, linear_sigma(3, 0.05, 1.0), shrink=True)
    fit(policy, clip_of, 400)
    with torch.no_grad():
        found, _ = chunk(policy, {"arm": torch.zeros(512, 2, 3)}, (), generator(2))
    to_up, to_down = ((found - end).square().mean((1, 2)).sqrt() for end in (up, -up))
    assert (torch.minimum(to_up, to_down) < 0.3).float().mean() > 0.9
    assert (to_up < to_down).float().mean().item() == pytest.approx(0.5, abs=0.12)


def test_it_learns_one_episode_by_heart():
    """Three steps give back the actions of a single episode to a mean squared error below 1e-3, in scaled units."""
    t = torch.linspace(0, 1, 40)
    arm = torch.stack([t, (6 * t).sin(), (6 * t).cos()], 1) * 2
    action = torch.stack([(9 * t).sin(), (4 * t).cos()], 1) * 0.8
    start = torch.arange(35)
    rows = lambda x, n: x[start[:, None] + torch.arange(n)][:, None]
    whole = Clip({"arm": rows(arm, 2)}, rows(action, 6), torch.ones(35, 1, dtype=torch.bool))
    policy = fit(beso(std=0, width=48), lambda noise: whole, 700)
    found, _ = chunk(policy, {"arm": whole.obs["arm"][:, 0]}, (), generator(2))
    assert (found - whole.action[:, 0]).square().mean() < 1e-3
