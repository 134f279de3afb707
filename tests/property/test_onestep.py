"""One-step policies: exact jumps on any grid, both modes in one step, and a teacher that is there for training only.

Mutations: r of the grid's own angle instead of the next; the teacher as a submodule; the teacher's draws not put back; the
gain t left out; the span not shown to the body.
"""

import math
import shutil

import pytest
import torch

from polyarm.config import build, compose
from polyarm.policies import checkpoint
from polyarm.policies.generate.angle import linear_flow, wide
from polyarm.policies.generate.forms import LogitNormal
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.mixture import Mixture
from polyarm.policies.onestep import _require_euler
from polyarm.policies.policy import chunk, clip_loss
from polyarm.spec import ActionSpace, Clip, ObsSpace, Scale, Spec, Stream, UserError

OBS = ObsSpace((Stream("s", "state", (1,), ("a",), ("1",), scale=Scale.identity(1)),), 10.0)
ACTION = ActionSpace(("x", "y"), ("m", "m"), "base", 10.0, scale=Scale((2.0, 0.5), (0.0, 0.1)))
SMALL = [
    "policy.horizon=2",
    "policy.n_obs_steps=1",
    "policy.n_action_steps=2",
    "policy.body.width=64",
    "policy.body.blocks=2",
]
BODIES = {
    "mlp": ["policy.body.width=16"],
    "unet": ["policy.body.down_dims=[8,16]"],
    "transformer": ["policy.body.width=16", "policy.body.layers=1", "policy.body.heads=2"],
    "gpt": ["policy.body.width=16", "policy.body.layers=1", "policy.body.heads=2"],
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def policy(name, *words, seed=0, std=0.0, obs=OBS, action=ACTION):
    """As its yaml says but for `words`; `std` spreads its weights so that it answers something."""
    torch.manual_seed(seed)
    made = build(compose([f"policy={name}", *words]).policy, Spec(obs, action))
    for p in made.parameters() if std else ():
        torch.nn.init.normal_(p, std=std)
    return made


def saved(folder, name, *words, std=0.2, **settings):
    """A checkpoint of a policy with random weights."""
    made = policy(name, *words, std=std, **settings)
    spec = Spec(made.obs_space, made.action_space)
    checkpoint.save(folder, compose([f"policy={name}", *words]), spec, made.state_dict())
    return folder


def average(z, r, t):
    """The exact average velocity of N(0.3, 0.5^2) data."""
    s = lambda t: (wide(t) ** 2 + (1 - wide(t)) ** 2 * 0.25).sqrt()
    there = (1 - wide(r)) * 0.3 + s(r) / s(t) * (z - (1 - wide(t)) * 0.3)
    return (z - there) / wide(t - r)


def exact(predict, **sampler):
    """A policy whose network is exact."""
    made = policy("meanflow", *SMALL, f"policy.form.predict={predict}")
    u = lambda z, r, t, seen: average(z, r, t)
    made._net = u if predict == "velocity" else lambda z, r, t, seen: z - wide(t) * average(z, r, t)
    made.sampler = Sampler(euler, limit=None, **sampler)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("predict", ["actions", "velocity"])
def test_the_eulers_of_any_grid_are_exact_jumps(predict, steps, dtype):
    """Section 3.4: z_r = z - (t - r) u. With the exact u every number of steps ends in the exact map 0.3 + 0.5 noise, as the
    jumps done by hand do, where Euler on the velocity ends in the mean in one step."""
    made = exact(predict, angles=linear_flow(steps))
    x = torch.randn(6, 2, 2, generator=generator(), dtype=dtype)
    got = made.sampler(made.denoise, x, made.encode({"s": torch.zeros(6, 1, 1, dtype=dtype)}, ())[0], generator())
    z = x
    for k in range(steps):
        t, r = (torch.full((6,), 1 - i / steps, dtype=dtype) for i in (k, k + 1))
        z = z - wide(t - r) * average(z, r, t)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(got, z, rtol=0, atol=tolerance)
    torch.testing.assert_close(got, 0.3 + 0.5 * x, rtol=0, atol=tolerance)


def test_on_a_grid_that_is_not_flows_the_jumps_are_exact_too():
    """Any falling angles, such as those of a mixture that were given to it; between them the next one below counts."""
    grid = torch.tensor([math.pi / 2, 1.3, 0.4, 0.1, 0.0], dtype=torch.float64)
    made, x = exact("actions", angles=grid), torch.randn(6, 2, 2, generator=generator(), dtype=torch.float64)
    cond = made.encode({"s": torch.zeros(6, 1, 1).double()}, ())[0]
    torch.testing.assert_close(made.sampler(made.denoise, x, cond, generator()), 0.3 + 0.5 * x, rtol=0, atol=1e-9)
    at = torch.tensor([1.5, 1.3, 1.2999, 0.4, 0.2, 0.1, 0.05, 0.0])
    want = torch.tensor([1.3, 0.4, 0.4, 0.1, 0.1, 0.0, 0.0, 0.0])
    torch.testing.assert_close(made._next(at), want)


def test_in_a_mixture_its_own_grid_must_be_the_mixtures():
    """Two parts of the same exact network, four steps: on the mixture's grid they are the one, on a one-step grid not."""
    x, mixed = torch.randn(6, 2, 2, generator=generator()), Sampler(euler, linear_flow(4), None)

    def end(own):
        parts = [exact("actions", angles=linear_flow(own)) for _ in range(2)]
        both = Mixture(parts, (0.5, 0.5), mixed)
        cond = both.encode({"s": torch.zeros(6, 1, 1)}, ())[0]
        return mixed(both.denoise, x, cond, generator())

    torch.testing.assert_close(end(4), 0.3 + 0.5 * x, rtol=0, atol=1e-5)
    assert (end(1) - (0.3 + 0.5 * x)).abs().max() > 0.1


def a_clip(n=16, horizon=2, obs_steps=1, seed=3):
    draw = generator(seed)
    rows = ACTION.scale.undo(torch.randn(n, 1, horizon, 2, generator=draw) * 0.3)
    return Clip({"s": torch.randn(n, 1, obs_steps, 1, generator=draw)}, rows, torch.ones(n, 1, dtype=torch.bool))


@pytest.mark.parametrize("mean", [-200.0, -15.0, 15.0, 200.0])
@pytest.mark.parametrize("predict", ["actions", "velocity"])
@pytest.mark.parametrize("name", ["meanflow", "shortcut", "consistency"])
def test_losses_and_gradients_are_finite_at_both_ends(name, predict, mean, tmp_path):
    """t = 0 and 1 to the last bit, and 3e-7 away from them."""
    words = [*SMALL, f"policy.form.predict={predict}"]
    if name == "consistency":
        words.append(f"policy.teacher={saved(tmp_path / 'teacher', 'flow', *SMALL)}")
    made = policy(name, *words, std=0.2)
    object.__setattr__(made.form, "law", LogitNormal(mean, 0.01))
    loss, _ = clip_loss(made, a_clip(), generator())
    loss.backward()
    slopes = [p.grad.abs().max() for p in made.parameters() if p.grad is not None]
    assert loss.isfinite() and loss < 1e3 and torch.stack(slopes).isfinite().all()


@pytest.mark.parametrize("body", BODIES)
def test_every_body_is_told_the_span_and_trains(body):
    """Each learns all it has under MeanFlow, which differentiates the body by time, also where gradients are off; and answers
    otherwise for another span."""
    made = policy("meanflow", f"body={body}", *BODIES[body], std=0.2)
    clip = a_clip(horizon=16, obs_steps=2)
    loss, _ = clip_loss(made, clip, generator())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    made.eval()
    with torch.no_grad():
        assert clip_loss(made, clip, generator())[0].isfinite()
        x, phi = torch.randn(4, 16, 2, generator=generator()), torch.full((4,), 1.2)
        cond = made.encode({"s": clip.obs["s"][:4, 0]}, ())[0]
        far = made.denoise(x, phi, cond)
        made.sampler = Sampler(euler, linear_flow(10))
        assert (made.denoise(x, phi, cond) - far).abs().max() > 1e-3


def fit(made, clip_of, steps, lr=2e-3):
    optimizer = torch.optim.Adam(made.parameters(), lr=lr)
    draw = generator(1)
    for i in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * i / steps)) / 2
        loss, _ = clip_loss(made, clip_of(draw), draw)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
    return made.eval()


def two_modes(draw, b=128):
    """Chunks are, with equal chance, +0.8 or -0.8 on every channel and row (scaled)."""
    sign = 2.0 * torch.randint(2, (b, 1, 1, 1), generator=draw) - 1
    action = ACTION.scale.undo((0.8 * sign).expand(b, 1, 2, 2))
    return Clip({"s": torch.zeros(b, 1, 1, 1)}, action, torch.ones(b, 1, dtype=torch.bool))


def one_step(made):
    with torch.no_grad():
        sampler = Sampler(euler, linear_flow(1)) if made.name == "flow" else None
        return ACTION.scale.do(chunk(made, {"s": torch.zeros(1000, 1, 1)}, (), generator(2), sampler)[0])


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    made = fit(policy("flow", *SMALL), two_modes, 700)
    folder = tmp_path_factory.mktemp("taught") / "flow"
    checkpoint.save(folder, compose(["policy=flow", *SMALL]), Spec(OBS, made.action_space), made.state_dict())
    return made, folder


def test_one_euler_step_of_a_flow_is_near_the_mean(flow):
    """Section 4.7: of two modes it makes neither."""
    assert one_step(flow[0]).square().mean().sqrt() < 0.25


@pytest.mark.parametrize(
    ("name", "steps"), [pytest.param("meanflow", 900, marks=pytest.mark.slow), ("shortcut", 900), ("consistency", 700)]
)
def test_one_step_keeps_both_modes(name, steps, flow):
    """Section 4.7: nearly every chunk is one of the two as a whole, and neither makes less than three in ten; near the border
    between them a few are not."""
    words = [f"policy.teacher={flow[1]}"] if name == "consistency" else []
    found = one_step(fit(policy(name, *SMALL, *words), two_modes, steps)).flatten(1)
    near = ((found.abs() - 0.8).abs() < 0.3).all(1)
    assert near.float().mean() > 0.75
    signs = found.sign()
    assert (signs == signs[:, :1]).all(1).float().mean() > 0.95
    assert 0.3 < (signs > 0).float().mean() < 0.7


def test_a_teacher_is_neither_saved_nor_trained(tmp_path):
    """Weights, parameters and modules are those of an untaught student; only a prepared student asks the teacher, and
    loading it moves no draw of the student's."""
    folder = saved(tmp_path / "teacher", "flow", *SMALL)
    taught = policy("consistency", *SMALL, f"policy.teacher={folder}")
    free = policy("consistency", *SMALL)
    assert taught.encode(clip_obs(), ())[0].teacher is None
    before = torch.get_rng_state()
    taught.prepare()
    assert torch.equal(before, torch.get_rng_state())
    assert all(taught.encode(clip_obs(), (), g)[0].teacher is not None for g in (None, generator()))
    clip_loss(taught, a_clip(), generator())[0].backward()
    assert taught.state_dict().keys() == free.state_dict().keys()
    assert len(list(taught.parameters())) == len(list(free.parameters()))
    assert len(list(taught.modules())) == len(list(free.modules()))
    (teacher,) = taught._taught_by
    assert not teacher.training and all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def clip_obs(n=4):
    return {"s": torch.zeros(n, 1, 1)}


def test_a_student_acts_when_its_teacher_is_gone(tmp_path):
    """Loading and acting need no teacher; training again says that it is missed."""
    words = [*SMALL, f"policy.teacher={tmp_path / 'teacher'}"]
    saved(tmp_path / "teacher", "flow", *SMALL)
    student = saved(tmp_path / "student", "consistency", *words)
    with torch.no_grad():
        first = chunk(checkpoint.load(student), clip_obs(), (), generator())[0]
        shutil.rmtree(tmp_path / "teacher")
        again = checkpoint.load(student)
        assert torch.equal(chunk(again, clip_obs(), (), generator())[0], first)
    for ask in (again.prepare, lambda: clip_loss(again, a_clip(), generator())):
        with pytest.raises(UserError, match="teacher does not exist: give the output_dir of a training run"):
            ask()


def test_the_students_target_is_the_teachers_flow(tmp_path):
    """One bin: the student is told the teacher's own step from noise to chunk, its sampler's limit included, whatever the
    demonstrations."""
    folder = saved(tmp_path / "teacher", "flow", *SMALL, std=1.0)
    made = policy("consistency", *SMALL, f"policy.teacher={folder}", "policy.objective.bins=1")
    asked, objective = [], made.objective

    class Spy:
        taught, power = True, 0.5

        def __call__(self, average, law, action, noise, cond, draw, teacher):
            asked.append((noise, objective(average, law, action, noise, cond, draw, teacher)))
            return asked[-1][1]

    made.objective = Spy()
    clip = a_clip()
    clip_loss(made, clip, generator())
    ((noise, aim),) = asked
    told = noise - aim.target[:16]  # where the average line from t = 1 meets 0
    teacher = checkpoint.load(folder)
    with torch.no_grad():
        cond, _ = teacher.encode({"s": clip.obs["s"][:, 0]}, ())
        want = Sampler(euler, linear_flow(1))(teacher.denoise, noise, cond, generator())
        free = teacher.denoise(noise, torch.full((16,), math.pi / 2), cond)
    torch.testing.assert_close(told, want, rtol=0, atol=1e-5)
    assert want.abs().max() <= 1 < free.abs().max()


def test_who_cannot_teach(tmp_path):
    """One sentence each, before anything is trained."""
    SEED = ["policy.horizon=2", "policy.n_obs_steps=1", "policy.n_action_steps=2"]
    cases = [
        (None, [], "policy.teacher=null, but this objective is taught"),
        (("ebt", *SMALL), [], "teacher ebt answers the same at every noise angle"),
        (("seed", *SEED), [], "teacher seed carries a memory from chunk to chunk"),
        (("flow", *SMALL, "policy.horizon=4"), [], "their chunks start at other times"),
    ]
    for i, (teacher, words, said) in enumerate(cases):
        if teacher is not None:
            words = [f"policy.teacher={saved(tmp_path / str(i), *teacher)}"]
        with pytest.raises(UserError, match=said) as e:
            policy("consistency", *SMALL, *words).prepare()
        assert "\n" not in str(e.value)
    other = ActionSpace(("x", "y"), ("m", "m"), "base", 10.0, scale=Scale((2.0, 0.4), (0.0, 0.1)))
    folder = saved(tmp_path / "scale", "flow", *SMALL, action=other)
    with pytest.raises(UserError, match="action channel 'y' is scaled by 0.5"):
        policy("consistency", *SMALL, f"policy.teacher={folder}").prepare()
    more = ObsSpace((*OBS.streams, Stream("w", "state", (1,), ("b",), ("1",), scale=Scale.identity(1))), 10.0)
    folder = saved(tmp_path / "obs", "flow", *SMALL, obs=more)
    with pytest.raises(UserError, match="teacher flow needs observation stream 'w'"):
        policy("consistency", *SMALL, f"policy.teacher={folder}").prepare()


def test_samplers_that_have_no_meaning_are_refused():
    """Only euler asks for whole steps."""
    with pytest.raises(UserError, match="policy.sampler.solver heun .*give sampler=euler"):
        policy("meanflow", "sampler=heun")
    with pytest.raises(UserError, match="a schedule a channel"):
        _require_euler(Sampler(euler, linear_flow(3)[:, None].expand(4, 2)))


@pytest.mark.parametrize(
    ("name", "steps", "bound"), [("shortcut", 600, 1e-3), pytest.param("meanflow", 900, 4e-3, marks=pytest.mark.slow)]
)
def test_it_learns_one_episode_by_heart(name, steps, bound):
    """One step gives back the actions of a single episode, in scaled units squared. MeanFlow, whose targets are made of its own
    derivative, gets below 1e-3 as well, in more time than a test has."""
    t = torch.linspace(0, 1, 40)
    state = torch.stack([t, (6 * t).sin(), (6 * t).cos()], 1) * 2
    action = torch.stack([(9 * t).sin(), (4 * t).cos()], 1) * 0.8
    start = torch.arange(35).repeat(4)
    rows = lambda x, n: x[start[:, None] + torch.arange(n)][:, None]
    whole = Clip({"s": rows(state, 2)}, ACTION.scale.undo(rows(action, 4)), torch.ones(140, 1, dtype=torch.bool))
    obs = ObsSpace((Stream("s", "state", (3,), ("a", "b", "c"), ("1",) * 3, scale=Scale.identity(3)),), 10.0)
    made = policy(name, "policy.horizon=4", "policy.n_action_steps=3", "policy.body.width=64", obs=obs)
    fit(made, lambda draw: whole, steps, lr=3e-3)
    with torch.no_grad():
        found, _ = chunk(made, {"s": whole.obs["s"][:, 0]}, (), generator(2))
    error = (ACTION.scale.do(found) - ACTION.scale.do(whole.action[:, 0])).square().mean()
    assert error < bound, float(error)
