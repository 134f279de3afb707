"""Theorems of Fuse and State: scaled channels in the order of the space, every step by itself, clear refusals."""

from functools import partial

import pytest
import torch

from polyarm.encoders.fuse import Fuse
from polyarm.encoders.state import State
from polyarm.spec import CACHED, FRAMES, ObsSpace, Scale, Stream, UserError
from tests.from_yaml import ResNetKeypoints

ARM = Stream("arm", "state", (3,), ("x", "y", "z"), scale=Scale((2.0, 0.5, 1.0), (1.0, 0.0, -1.0)))
GOAL = Stream("goal", "goal", (2,), ("u", "v"), scale=Scale((10.0, 10.0), (0.0, 5.0)))
CAMERA = Stream("camera", "image", (36, 36, 3))
SPACE = ObsSpace((CAMERA, ARM, GOAL), 10.0)
LOW = SPACE.pick(("arm", "goal"))
KEYPOINTS = partial(ResNetKeypoints, crop=(34, 34), keypoints=4, features=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(b=2, o=3):
    generator = seeded()
    return {
        "camera": torch.randint(0, 256, (b, o, 36, 36, 3), dtype=torch.uint8, generator=generator),
        "arm": torch.randn(b, o, 3, generator=generator),
        "goal": torch.randn(b, o, 2, generator=generator),
    }


@pytest.fixture(scope="module")
def fuse():
    torch.manual_seed(0)
    return Fuse(SPACE, image=KEYPOINTS, state=State, goal=partial(State, hidden=(16, 5)))


def test_states_pass_scaled_in_the_order_of_the_space():
    """Mutations: undo in place of do, sorted names, scale of the other stream, keyword order."""
    obs = draw()
    got = Fuse(LOW, goal=State, state=State)(obs)
    assert torch.equal(got, torch.cat((ARM.scale.do(obs["arm"]), GOAL.scale.do(obs["goal"])), dim=-1))
    turned = Fuse(LOW.pick(("goal", "arm")), goal=State, state=State)(obs)
    assert torch.equal(turned, torch.cat((got[..., 3:], got[..., :3]), dim=-1))


def test_images_and_states_keep_their_columns(fuse):
    """Mutations: features added instead of joined, `width` of another layer."""
    obs = draw()
    got = fuse(obs)
    assert got.shape[-1] == fuse.width == 8 + 3 + 5
    assert torch.equal(got[..., 8:11], ARM.scale.do(obs["arm"]))
    torch.testing.assert_close(got[1, :, :8], fuse.encoders[0](obs["camera"][1]))
    torch.testing.assert_close(got[1, :, 11:], fuse.encoders[2].mlp(GOAL.scale.do(obs["goal"][1])))


def test_every_step_is_encoded_by_itself(fuse):
    """Mutations: axes of batch and step exchanged on one side, a norm over steps."""
    obs = draw()
    order = [2, 0, 1]
    turned = {name: x[:, order] for name, x in obs.items()}
    torch.testing.assert_close(fuse(turned), fuse(obs)[:, order])
    swapped = {name: x.flip(0) for name, x in obs.items()}
    torch.testing.assert_close(fuse(swapped), fuse(obs).flip(0))


def test_equal_pictures_of_two_steps_are_cropped_apart(fuse):
    """One crop an image. Mutation: one crop a window of steps."""
    obs = draw(b=2, o=6)
    obs["camera"] = obs["camera"][:1, :1].expand(2, 6, -1, -1, -1)
    features = fuse(obs, seeded())[..., :8].reshape(12, 8)
    assert len(features.unique(dim=0)) > 1
    assert torch.equal(fuse(obs, seeded()), fuse(obs, seeded()))
    plain = fuse(obs)[..., :8].reshape(12, 8)
    torch.testing.assert_close(plain, plain[:1].expand(12, 8))


def test_a_streams_name_comes_before_its_kind():
    """Mutation: kind first."""
    fuse = Fuse(LOW, state=partial(State, hidden=(7,)), arm=State, goal=State)
    assert fuse.width == 3 + 2


def test_gradient_reaches_every_parameter(fuse):
    """Mutation: an encoder kept outside the module, or its features dropped."""
    fuse.zero_grad()
    fuse(draw(), seeded()).square().sum().backward()
    assert [name for name, p in fuse.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert {name.split(".")[1] for name, _ in fuse.named_parameters()} == {"0", "2"}


def test_a_stream_without_encoder_is_refused():
    with pytest.raises(
        UserError, match="stream 'arm' of kind state has no encoder, given are goal: give one under 'state'"
    ):
        Fuse(LOW, goal=State)


def test_an_encoder_of_nothing_is_refused():
    with pytest.raises(UserError, match="unknown stream or kind to encode 'stat': did you mean 'state'"):
        Fuse(LOW, stat=State, goal=State)


def test_a_stream_without_scale_is_refused():
    bare = ObsSpace((Stream("arm", "state", (1,), ("x",)),), 10.0)
    with pytest.raises(UserError, match="stream 'arm' has no scale: fit it on the demonstrations"):
        Fuse(bare, state=State)


@pytest.mark.parametrize("width", [1, 4])
def test_another_width_is_refused(width):
    """One channel would broadcast over the scale silently. Mutation: no check."""
    obs = draw() | {"arm": torch.zeros(2, 3, width)}
    with pytest.raises(UserError, match=rf"stream 'arm' comes as \(2, 3, {width}\), .* of \(3,\)"):
        Fuse(LOW, state=State, goal=State)(obs)


def test_a_missing_stream_is_refused():
    with pytest.raises(UserError, match="unknown observation stream 'goal': .*known are arm"):
        Fuse(LOW, state=State, goal=State)({"arm": torch.zeros(1, 1, 3)})


def test_frames_that_are_one_are_encoded_once(fuse):
    """A batch of overlapping windows gives what it gives without a word about its frames, gradient included, from as many
    pictures as there are. Mutations: features in the order of the rows, every frame encoded, the first frame for all."""
    obs = draw(4, 2)
    rows = torch.tensor([[7, 8], [8, 2], [3, 3], [2, 7]])
    for row in rows.unique():
        obs["camera"][rows == row] = obs["camera"][rows == row][0].clone()
    seen = []
    hook = fuse.encoders[0].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    fuse.zero_grad()
    want = fuse(obs)
    want.square().sum().backward()
    gradient = [p.grad.clone() for p in fuse.parameters()]
    fuse.zero_grad()
    got = fuse({**obs, FRAMES: rows})
    got.square().sum().backward()
    hook.remove()
    assert seen == [8, 4]
    torch.testing.assert_close(got, want)
    for p, g in zip(fuse.parameters(), gradient, strict=True):
        torch.testing.assert_close(p.grad, g, atol=1e-4, rtol=1e-4)


def test_frames_that_are_one_share_their_crop_and_others_do_not(fuse):
    """Mutation: a crop for each copy."""
    obs = draw(1, 3)
    obs["camera"][:] = obs["camera"][:, :1].clone()
    got = fuse({**obs, FRAMES: torch.tensor([[5, 5, 6]])}, seeded(1))[0, :, :8]
    assert torch.equal(got[0], got[1])
    assert not torch.equal(got[0], got[2])


def test_cached_features_take_the_place_of_pixels():
    """Mutations: pixels asked for beside them, the head left out."""
    space = SPACE.pick(("camera", "arm"))
    fuse = Fuse(space, image=lambda stream: Frozen(), state=State)
    obs = draw(2, 3)
    pooled = fuse.encoders[0].pooled(obs["camera"].flatten(0, 1)).view(2, 3, 4)
    want = fuse(obs)
    assert [name for name, _ in fuse.frozen()] == ["camera"]
    assert torch.equal(fuse({"arm": obs["arm"], CACHED + "camera": pooled}), want)


class Frozen(torch.nn.Module):
    """What `Backbone` promises: pooled features that stay as they are, and a head that learns."""

    frozen, width = True, 6

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 6)

    def pooled(self, x, generator=None):
        return x.float().mean((1, 2)).repeat(1, 2)[:, :4]

    def forward(self, x, generator=None):
        return self.head(self.pooled(x, generator))


def test_numbers_are_moved_in_training_alone():
    """By noise of the width that is said, in scaled units. Mutations: noise without a generator; noise of width one."""
    state, x = State(ARM, noise_std=0.05), torch.zeros(20_000, 3)
    assert torch.equal(state(x), x) and torch.equal(State(ARM)(x, seeded()), x)
    moved = state(x, seeded())
    assert moved.std(0).sub(0.05).abs().max() < 0.003 and moved.mean(0).abs().max() < 0.003
    assert torch.equal(moved, state(x, seeded()))
