"""What every policy shares: state is a value, clips carry it, chunks are in raw units; and DiffusionPolicy on a toy."""

from functools import partial

import pytest
import torch
from torch import nn

from polyarm.policies.diffusion import DiffusionPolicy
from polyarm.policies.generate.angle import Schedule, ddim_leading, linear_flow
from polyarm.policies.generate.forms import Diffusion, Flow, Karras
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.policy import Plain, chunk, clip_loss, clip_losses, require_chunk, require_policy, restart
from polyarm.spec import ActionSpace, Clip, ObsSpace, Scale, Stream, UserError
from tests.from_yaml import ResidualMlp

OBS = ObsSpace((Stream("size", "state", (1,), ("size",), ("m",)),), 10.0)
SCALE = Scale((0.1, 0.5), (0.0, 0.25))
ACTION = ActionSpace(("x", "y"), ("m", "m"), "base", 10.0, horizon=2, scale=SCALE)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Sum(Plain):
    """A recurrent policy: it carries the sum of what it saw, counts its chunks, and answers with the sum."""

    name = "sum"
    obs_space, action_space = OBS, ACTION
    n_obs_steps, n_action_steps = 1, 2
    sampler = Sampler(euler, linear_flow(3), limit=None)

    def __init__(self):
        self.augmented, self.asked = [], 0

    def start(self, b):
        return torch.zeros(b, 1), torch.zeros(b, dtype=torch.int64)

    def encode(self, obs, state, generator=None):
        self.augmented.append(generator is not None)
        total = state[0] + obs["size"].mean(1)
        return total, (total, state[1] + 1)

    def denoise(self, x, phi, cond):
        self.asked += 1
        return cond[:, None].expand_as(x)

    def loss(self, action, cond, generator):
        return (action * cond[:, None]).mean()


def test_restart_resets_flagged_rows_only():
    """restart = where(flag, start, state), for every tensor of the state, whatever its rank and type."""
    state = torch.tensor([[5.0], [6.0], [7.0]]), torch.tensor([3, 4, 5])
    total, count = restart(Sum(), state, torch.tensor([False, True, False]))
    assert total.flatten().tolist() == [5.0, 0.0, 7.0] and count.tolist() == [3, 0, 5]
    assert count.dtype == torch.int64 and state[0].flatten().tolist() == [5.0, 6.0, 7.0]


def a_clip(reset):
    """Two rows of three windows that see 1, 2, 4; raw action (10, 1.5), that is (1, 1) scaled."""
    size = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1).expand(2, 3, 1, 1)
    return Clip({"size": size}, torch.tensor([10.0, 1.5]).expand(2, 3, 2, 2), torch.tensor(reset))


def test_clip_loss_carries_state_across_windows_and_restarts_at_flags():
    """Row 0 remembers 1, 3, 7; row 1, flagged at its third window, 1, 3, 4. With unit scaled actions the loss is the
    mean of what is remembered; the state after the clip is given back."""
    policy = Sum()
    loss, (total, count) = clip_loss(policy, a_clip([[True, False, False], [True, False, True]]), generator())
    assert loss.item() == pytest.approx((1 + 3 + 7 + 1 + 3 + 4) / 6)
    assert total.flatten().tolist() == [7.0, 4.0] and count.tolist() == [3, 1]
    assert policy.augmented == [True, True, True]


def test_clip_loss_goes_on_from_the_clip_before_unless_an_episode_starts():
    """Row 0 goes on from 100, row 1 starts a new episode."""
    before = torch.tensor([[100.0], [100.0]]), torch.tensor([9, 9])
    _, (total, count) = clip_loss(Sum(), a_clip([[False] * 3, [True, False, False]]), generator(), before)
    assert total.flatten().tolist() == [107.0, 7.0] and count.tolist() == [12, 3]


def test_chunk_is_in_raw_units_and_encodes_once():
    """Scaled 0.5 is raw (5, 0.5) under y = (0.1 x, 0.5 x + 0.25); one encode without augmentation, three denoising steps."""
    policy = Sum()
    raw, (total, count) = chunk(policy, {"size": torch.full((4, 1, 1), 0.5)}, policy.start(4), generator())
    torch.testing.assert_close(raw, torch.tensor([5.0, 0.5]).expand(4, 2, 2))
    assert policy.augmented == [False] and policy.asked == 3
    assert total.flatten().tolist() == [0.5] * 4 and count.tolist() == [1] * 4


def test_an_action_space_without_a_scale_is_refused():
    """Raw units never reach a network."""
    policy = Sum()
    policy.action_space = ActionSpace(("x", "y"), ("m", "m"), "base", 10.0, horizon=2)
    for run in (
        lambda: clip_loss(policy, a_clip([[True] * 3] * 2), generator()),
        lambda: chunk(policy, {"size": torch.zeros(1, 1, 1)}, policy.start(1), generator()),
    ):
        with pytest.raises(UserError, match="the action space has no scale: fit one on the demonstrations"):
            run()


def test_require_chunk():
    """Diffusion Policy, section 1 of the published reference: Ta <= Tp - To + 1; rows To - 1 .. To - 2 + Ta are run."""
    require_chunk(horizon=16, n_obs_steps=2, n_action_steps=15)
    with pytest.raises(UserError, match="n_action_steps=16 rows .* horizon=16 .* n_obs_steps=2: give at most 15"):
        require_chunk(horizon=16, n_obs_steps=2, n_action_steps=16)
    for sizes in ((0, 1, 1), (16, 0, 1), (16, 1, 0)):
        with pytest.raises(UserError, match="each must be at least 1"):
            require_chunk(*sizes)


class Size(nn.Module):
    """An encoder that shows what it sees."""

    width = 1

    def forward(self, obs, generator):
        return obs["size"]


def diffusion_policy(body, form, sampler):
    torch.manual_seed(0)
    return DiffusionPolicy("toy", OBS, ACTION, 2, 1, 2, lambda space: Size(), body, form, sampler)


class Recorder(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.sizes, self.clocks = sizes, []

    def forward(self, x, clock, cond):
        self.clocks += clock.tolist()
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("form", "grid", "clocks"),
    [
        (Flow(), linear_flow(4), [100, 75, 50, 25]),
        (Diffusion(), ddim_leading(Schedule(), 5), [80, 60, 40, 20, 0]),
        (Diffusion(Schedule(1000, "linear")), ddim_leading(Schedule(1000, "linear"), 5), [80, 60, 40, 20, 0]),
        (Karras(), torch.tensor([80.0, 1.0, 0.0], dtype=torch.float64).atan(), [109.55, 0]),
    ],
    ids=["flow", "diffusion", "1000 steps", "karras"],
)
def test_the_body_is_asked_in_percent_of_the_schedule(form, grid, clocks):
    """As 100-step DDPM networks count, whatever the family and the length of its schedule; EDM's clock log(sigma) / 4
    times 100. The body is built for the sizes of data and encoder."""
    policy = diffusion_policy(Recorder, form, Sampler(euler, grid))
    chunk(policy, {"size": torch.ones(1, 1, 1)}, (), generator())
    assert policy.body.clocks == pytest.approx(clocks, abs=2e-3)
    assert policy.body.sizes == {"action_dim": 2, "horizon": 2, "n_obs_steps": 1, "cond_dim": 1}


def train_two_modes(form, sampler):
    """Chunks are, with equal chance, +size or -size on every channel and row (scaled); sizes 0.4 and 0.8 are seen."""
    policy = diffusion_policy(partial(ResidualMlp, width=96, blocks=2), form, sampler)
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    draw = generator(1)
    for _ in range(1500):
        size = 0.4 + 0.4 * torch.randint(2, (256, 1, 1, 1), generator=draw)
        sign = 2 * torch.randint(2, (256, 1, 1, 1), generator=draw) - 1
        action = SCALE.undo((sign * size).expand(256, 1, 2, 2))
        loss, _ = clip_loss(policy, Clip({"size": size}, action, torch.ones(256, 1, dtype=torch.bool)), draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return policy.eval()


def scaled_chunks(policy, size, sampler=None):
    with torch.no_grad():
        raw, _ = chunk(policy, {"size": torch.full((1000, 1, 1), size)}, (), generator(2), sampler)
    return SCALE.do(raw)


@pytest.fixture(scope="module")
def two_modes():
    return train_two_modes(Flow(), Sampler(euler, linear_flow(10)))


@pytest.fixture(scope="module")
def two_modes_by_diffusion():
    return train_two_modes(Diffusion(predict="actions"), Sampler(euler, ddim_leading(Schedule(), 16)))


@pytest.mark.parametrize("size", [0.4, 0.8])
@pytest.mark.parametrize("trained", ["two_modes", "two_modes_by_diffusion"])
def test_both_modes_are_kept_at_the_default_steps(trained, size, request):
    """Flow matching, section 4.7 of the published reference: ten Euler steps of a flow, sixteen DDIM steps of a diffusion,
    end in one mode or the other, both equally often, the whole chunk in the same one, and at the size that is seen."""
    chunks = scaled_chunks(request.getfixturevalue(trained), size)
    assert ((chunks.abs() - size).abs() < 0.15).float().mean() > 0.9
    assert 0.4 < (chunks > 0).float().mean() < 0.6
    signs = chunks.flatten(1).sign()
    assert (signs == signs[:, :1]).all(1).float().mean() > 0.95


@pytest.mark.parametrize("size", [0.4, 0.8])
def test_one_euler_step_of_a_flow_lands_between_the_modes(two_modes, size):
    """Section 4.7: a perfect flow's first step from pure noise is the mean of the demonstrations, which here nobody
    has shown."""
    chunks = scaled_chunks(two_modes, size, Sampler(euler, linear_flow(1)))
    assert (chunks.abs() < size / 2).float().mean() > 0.9 and chunks.square().mean().sqrt() < size / 3


def test_named_losses_are_averaged_each_and_summed():
    """Mutation: minimise the first one only."""

    class Two(Sum):
        def loss(self, action, cond, generator):
            return {"a": action.mean(), "b": 2 + action.square().mean()}

    clip = a_clip([[True, False, False], [True, False, True]])
    losses, _ = clip_losses(Two(), clip, generator())
    scaled = Two().action_space.scale.do(clip.action)
    assert list(losses) == ["loss", "a", "b"]
    torch.testing.assert_close(losses["a"], scaled.mean())
    torch.testing.assert_close(losses["loss"], scaled.mean() + 2 + scaled.square().mean())
    assert torch.equal(clip_loss(Two(), clip, generator())[0], losses["loss"])


def test_noise_samples_are_so_many_losses_of_each_window_seen_once():
    """Every window comes so often, beside its own condition, whatever holds that; the state goes on as with one. Mutations:
    the batch tiled beside conditions repeated in place, an encoder that is asked for every noise."""
    seen = []

    class Counted(Sum):
        def encode(self, obs, state, generator=None):
            cond, state = super().encode(obs, state, generator)
            seen.append(len(cond))
            return {"a": [cond], "n": 3}, state

        def loss(self, action, cond, generator):
            (rows,) = cond["a"]
            assert cond["n"] == 3
            assert len(rows) == len(action) == 8
            return (action[:, 0, 0] * rows.flatten(1)[:, 0]).mean()

    clip = a_clip([[True, False, False], [True, False, True]])
    clip.action = clip.action * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    want, state = clip_losses(Counted(), clip, generator(), noise_samples=4)
    assert seen == [2, 2, 2]
    single = type(
        "Single", (Counted,), {"loss": lambda self, a, c, g: (a[:, 0, 0] * c["a"][0].flatten(1)[:, 0]).mean()}
    )
    once, after = clip_losses(single(), clip, generator())
    torch.testing.assert_close(want["loss"], once["loss"])
    for a, b in zip(state, after, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("names", [(), ("loss", "b")])
def test_losses_without_a_name_of_their_own_are_refused(names):
    class Odd(Sum):
        def loss(self, action, cond, generator):
            return dict.fromkeys(names, action.mean())

    with pytest.raises(UserError, match="by names other than 'loss'"):
        clip_losses(Odd(), a_clip([[True, False, False], [True, False, True]]), generator())


def test_a_policy_that_says_nothing_of_what_it_cannot_do_is_told_of_plain():
    class Bare:
        name = "bare"

    with pytest.raises(UserError, match="Bare has no 'obs_space'.*policies.policy.Plain"):
        require_policy(Bare())
    assert require_policy(Sum())
