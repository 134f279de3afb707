"""The samplers against diffusers' schedulers step by step, in float64, for a network that is no oracle; and the
numbers of the published Diffusion Policy."""

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from polyarm.policies.generate.angle import Schedule, angle_of, ddim_leading, ddim_trailing, ddpm, wide
from polyarm.policies.generate.forms import Diffusion, denoiser, normal
from polyarm.policies.generate.sample import Sampler, ancestral, ddim_released, euler, multistep
from polyarm.spec import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers with numpy 2

SCHEDULE = Schedule()
COSINE = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def start(*shape):
    return normal(torch.empty(*shape, dtype=torch.float64), generator())


def net(x, clock, cond=None):
    """Any network; it answers within +-1.4, which clipping notices at every noise level."""
    return 1.4 * torch.tanh(0.8 * x + 0.01 * wide(clock) * x.flip(-1) + 0.1)


def asked(x, step):
    return net(x, torch.full((len(x),), float(step), dtype=x.dtype))


def double(scheduler):
    """diffusers keeps its tables in float32; the numbers are the same, the arithmetic now float64."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    for name in ("one", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def test_schedule_is_the_published_table():
    """Diffusion Policy, section 6 of the published reference: beta and alpha bar of the squared-cosine schedule
    (Nichol and Dhariwal, 2021, equation 17), to the printed digits."""
    beta = 1 - SCHEDULE.cumprod / torch.cat([torch.ones(1), SCHEDULE.cumprod[:-1]])
    for t, b, a in (
        (0, 0.00063128, 0.99936873),
        (1, 0.00111694, 0.99825251),
        (10, 0.00553037, 0.96671665),
        (25, 0.01344914, 0.83562052),
        (50, 0.03154634, 0.47826457),
        (75, 0.07470115, 0.13349481),
        (90, 0.18875144, 0.01954437),
        (98, 0.74993926, 0.00024286),
        (99, 0.99900001, 2.4e-7),
    ):
        assert float(beta[t]) == pytest.approx(b, abs=1.5e-7)  # the table was printed from float32
        assert float(SCHEDULE.cumprod[t]) == pytest.approx(a, abs=1.5e-7)
        assert float(SCHEDULE.angles[t].cos() ** 2) == pytest.approx(float(SCHEDULE.cumprod[t]), abs=1e-15)
        assert float(SCHEDULE.angles[t].sin() ** 2) == pytest.approx(1 - float(SCHEDULE.cumprod[t]), abs=1e-15)


def test_add_noise_is_the_angle():
    """Diffusion Policy, section 6: action 0.5 and noise 1 at step 50 make 1.0680959."""
    phi = SCHEDULE.angles[50]
    assert float(0.5 * phi.cos() + 1.0 * phi.sin()) == pytest.approx(1.0680959, abs=5e-8)


@pytest.mark.parametrize(
    ("steps", "want"), [(16, range(90, -1, -6)), (10, range(90, -1, -10)), (8, range(84, -1, -12))]
)
def test_ddim_leading_grid(steps, want):
    """Diffusion Policy, section 6: 16 steps are 90, 84, ..., 0, and the walk ends at the clean chunk."""
    torch.testing.assert_close(ddim_leading(SCHEDULE, steps)[:-1], SCHEDULE.angles[list(want)], rtol=0, atol=0)
    assert ddim_leading(SCHEDULE, steps)[-1] == 0


@pytest.mark.parametrize("steps", range(1, 101))
def test_ddim_grids_are_those_of_diffusers(steps):
    """Both spacings of Lin et al. (2024), table 2, for every number of steps. Trailing may differ from diffusers by one
    training step where the spacing is no whole number, for it adds up the spacing with rounding errors; there its grid
    may even have one step too many (29 steps give 30, the last of them step -1)."""
    clean = torch.zeros(1, dtype=torch.float64)
    for grid, spacing in ((ddim_leading, "leading"), (ddim_trailing, "trailing")):
        scheduler = DDIMScheduler(timestep_spacing=spacing, **COSINE)
        scheduler.set_timesteps(steps)
        got, theirs = grid(SCHEDULE, steps), scheduler.timesteps[:steps]
        assert len(got) == steps + 1 and (got.diff() < 0).all() and got[-1] == 0
        if spacing == "leading" or 100 % steps == 0:
            torch.testing.assert_close(got, torch.cat([SCHEDULE.angles[theirs], clean]), rtol=0, atol=0)
        else:
            index = torch.searchsorted(SCHEDULE.angles, got[:-1])
            assert index[0] == 99 and (index - theirs).abs().max() <= 1 and (index != theirs).sum() <= 2


def test_ddpm_step_numbers():
    """Diffusion Policy, section 6: at step 50 x = 0.5, noise 0.25 have the clean action 0.4618815, the posterior mean
    0.0424907 * action + 0.9547153 * x = 0.496983 and variance 0.0306044 (Ho et al., 2020, equations 6 and 7)."""
    grid, x = ddpm(SCHEDULE)[49:51], torch.tensor([[[0.5]]], dtype=torch.float64)
    read = denoiser(lambda x, clock, cond=None: torch.full_like(x, 0.25), Diffusion())
    assert read(x, grid[:1]).item() == pytest.approx(0.4618815, abs=5e-8)

    def mean_and_variance(denoise, x):
        one, two = (ancestral(denoise, x, grid, None, generator(s)).item() for s in (1, 2))
        n_one, n_two = (normal(x, generator(s)).item() for s in (1, 2))
        std = (one - two) / (n_one - n_two)
        return one - std * n_one, std**2

    mean, variance = mean_and_variance(read, x)
    assert mean == pytest.approx(0.496983, abs=5e-7) and variance == pytest.approx(0.0306044, abs=1e-7)
    assert mean_and_variance(lambda x, phi, cond: 0 * x, x)[0] / 0.5 == pytest.approx(0.9547153, abs=1e-7)
    assert mean_and_variance(lambda x, phi, cond: 0 * x + 1, 0 * x)[0] == pytest.approx(0.0424907, abs=1e-7)


def test_ddpm_first_step_is_clipped():
    """Diffusion Policy, section 6: at step 99 the action is clipped to 1 and the variance is 0.9987577."""
    x = torch.full((2, 1, 1), 0.5, dtype=torch.float64)
    read = denoiser(lambda x, clock, cond=None: torch.full_like(x, 0.25), Diffusion())
    assert (read(x, ddpm(SCHEDULE)[:1].expand(2)) > 500).all()
    out = Sampler(ancestral, ddpm(SCHEDULE)[:2])(read, x, None, generator())
    noise = normal(x, generator())
    std = float((out[0] - out[1]) / (noise[0] - noise[1]))
    assert std**2 == pytest.approx(0.9987577, abs=5e-7)
    ratio = SCHEDULE.angles[98].tan() / SCHEDULE.angles[99].tan()
    kept = SCHEDULE.angles[98].sin() * ratio / SCHEDULE.angles[99].sin()
    action = SCHEDULE.angles[98].cos() * (1 - ratio**2)
    torch.testing.assert_close(out - std * noise, kept * x + action, rtol=0, atol=1e-12)


def test_ddim_released_numbers_and_what_euler_gives_instead():
    """Diffusion Policy, section 6: noise is not derived again after clipping: 90 -> 84 gives 0.474845, 0 -> clean
    0.493875. `euler` behind a clipped denoiser keeps x = cos * action + sin * noise true instead, so its noise is
    (0.5 - cos) / sin = 0.3638 and not 0.25 where the action was clipped (step 90), and the same where not (step 0)."""
    x = torch.tensor([[[0.5]]], dtype=torch.float64)
    read = denoiser(lambda x, clock, cond=None: torch.full_like(x, 0.25), Diffusion())
    angles = SCHEDULE.angles
    down, last = angles[[90, 84]], torch.stack([angles[0], torch.zeros_like(angles[0])])
    assert ddim_released(read, x, down).item() == pytest.approx(0.474845, abs=5e-7)
    assert ddim_released(read, x, last).item() == pytest.approx(0.493875, abs=5e-7)
    clipped = Sampler(euler, down)(read, x, None, generator()).item()
    noise = (0.5 - angles[90].cos()) / angles[90].sin()
    assert float(noise) == pytest.approx(0.3638, abs=5e-5)
    assert clipped == pytest.approx(float(angles[84].cos() + angles[84].sin() * noise), abs=1e-12)
    assert Sampler(euler, last)(read, x, None, generator()).item() == pytest.approx(0.493875, abs=5e-7)


@pytest.mark.parametrize("clip_sample", [True, False])
def test_ddpm_parity(clip_sample):
    """Ho et al. (2020), algorithm 2, with variance fixed_small: 100 steps, the same generator, chunk by chunk."""
    scheduler = double(DDPMScheduler(variance_type="fixed_small", clip_sample=clip_sample, **COSINE))
    scheduler.set_timesteps(100)
    x, theirs = start(8, 4, 3), generator(7)
    for t in scheduler.timesteps:
        x = scheduler.step(asked(x, t), t, x, generator=theirs).prev_sample
    ours = Sampler(ancestral, ddpm(SCHEDULE), 1.0 if clip_sample else None)
    got = ours(denoiser(net, Diffusion()), start(8, 4, 3), None, generator(7))
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize(("spacing", "grid", "steps"), [("leading", ddim_leading, 16), ("trailing", ddim_trailing, 10)])
def test_ddim_parity(spacing, grid, steps, set_alpha_to_one, clip_sample):
    """Song et al. (2021), equation 12 with eta 0. Without set_alpha_to_one the walk ends at the first training step."""
    scheduler = double(
        DDIMScheduler(timestep_spacing=spacing, set_alpha_to_one=set_alpha_to_one, clip_sample=clip_sample, **COSINE)
    )
    scheduler.set_timesteps(steps)
    x = start(8, 4, 3)
    for t in scheduler.timesteps:
        x = scheduler.step(asked(x, t), t, x).prev_sample
    angles = grid(SCHEDULE, steps)
    angles = angles if set_alpha_to_one else torch.cat([angles[:-1], SCHEDULE.angles[:1]])
    ours = Sampler(ddim_released if clip_sample else euler, angles, None)
    got = ours(denoiser(net, Diffusion()), start(8, 4, 3), None, generator())
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


def test_euler_behind_a_clip_is_ddim_with_use_clipped_model_output():
    """The other of diffusers' two ways to clip: the noise is derived again from the clipped action."""
    scheduler = double(DDIMScheduler(timestep_spacing="leading", **COSINE))
    scheduler.set_timesteps(16)
    x = start(8, 4, 3)
    for t in scheduler.timesteps:
        x = scheduler.step(asked(x, t), t, x, use_clipped_model_output=True).prev_sample
    ours = Sampler(euler, ddim_leading(SCHEDULE, 16))
    got = ours(denoiser(net, Diffusion()), start(8, 4, 3), None, generator())
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("predict", ["actions", "velocity"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_multistep_parity(steps, predict):
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2). The same algorithm as diffusers' DPMSolverMultistepScheduler with
    dpmsolver++, order 2, midpoint, trailing spacing, final sigma zero; lower_order_final off changes nothing then, for
    with order 2 only the last step is of lower order. Its step() rounds the chunk to float32, so that
    parity is to 1e-6 and not for predicted noise, which at step 99 is read through 1 / cos = 2034."""
    name = {"actions": "sample", "velocity": "v_prediction"}[predict]
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        lower_order_final=False,
        prediction_type=name,
        **COSINE,
    )
    scheduler.set_timesteps(steps)
    grid = ddim_trailing(SCHEDULE, steps)
    torch.testing.assert_close(scheduler.sigmas.double(), grid.tan(), rtol=1e-6, atol=0)
    scheduler.sigmas = grid.tan()
    x = start(8, 4, 3)
    for t in scheduler.timesteps:
        x = scheduler.step(asked(x, t), t, x).prev_sample
    got = multistep(denoiser(net, Diffusion(predict=predict)), start(8, 4, 3), grid)
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


def two_schedules():
    """Position on channels 0..2, rotation on 3..8, each with its own schedule: one network, one clock."""
    schedules = [Schedule(100, "scaled_linear"), Schedule(100, "squaredcos_cap_v2")]
    angles = torch.cat([schedules[0].angles[:, None].expand(100, 3), schedules[1].angles[:, None].expand(100, 6)], 1)
    grid = torch.cat([angles.flip(0), torch.zeros(1, 9, dtype=torch.float64)])

    def denoise(x, phi, cond=None):
        step = (phi[0, 0] - schedules[0].angles).abs().argmin()
        return (x - wide(phi).sin() * asked(x, step)) / wide(phi).cos()

    return schedules, grid, denoise


def by_channel(schedulers, x, **step):
    """Every scheduler steps the whole chunk, then each gives its own channels."""
    for t in schedulers[0].timesteps:
        noise = asked(x, t)
        state = step["generator"].get_state() if step else None
        parts = []
        for scheduler in schedulers:
            if step:
                step["generator"].set_state(state)  # both draw the same noise
            parts.append(scheduler.step(noise, t, x, **step).prev_sample)
        x = torch.cat([parts[0][..., :3], parts[1][..., 3:]], -1)
    return x


def test_two_schedules_in_one_chunk_ancestral():
    """3D Diffuser Actor (Ke et al., 2024), section 3.3: DDPM with scaled_linear for position, squared cosine for rotation."""
    schedules, grid, denoise = two_schedules()
    schedulers = [
        double(DDPMScheduler(num_train_timesteps=100, beta_schedule=s.beta_schedule, clip_sample=False))
        for s in schedules
    ]
    for scheduler in schedulers:
        scheduler.set_timesteps(100)
    want = by_channel(schedulers, start(8, 4, 9), generator=generator(5))
    got = ancestral(denoise, start(8, 4, 9), grid, None, generator(5))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_two_schedules_in_one_chunk_euler():
    """The same chunk walked with DDIM, every training step."""
    schedules, grid, denoise = two_schedules()
    schedulers = [
        double(DDIMScheduler(num_train_timesteps=100, beta_schedule=s.beta_schedule, clip_sample=False))
        for s in schedules
    ]
    for scheduler in schedulers:
        scheduler.set_timesteps(100)
    want = by_channel(schedulers, start(8, 4, 9))
    torch.testing.assert_close(euler(denoise, start(8, 4, 9), grid), want, rtol=1e-6, atol=1e-6)


def test_angle_of_is_exact_at_both_ends():
    """alpha bar 1 is the clean chunk, 0 pure noise."""
    got = angle_of(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    np.testing.assert_allclose(got, [0, np.pi / 4, np.pi / 2], rtol=0, atol=1e-15)


def test_wrong_settings_say_what_is_right():
    """Errors name the value, the expectation and the remedy."""
    with pytest.raises(UserError, match="unknown beta_schedule 'cosine': give one of .*squaredcos_cap_v2"):
        _ = Schedule(100, "cosine").angles
    for grid in (ddim_leading, ddim_trailing):
        with pytest.raises(UserError, match="steps=101 denoising steps: give 1 to 100"):
            grid(SCHEDULE, 101)
        with pytest.raises(UserError, match="steps=0"):
            grid(SCHEDULE, 0)
    with pytest.raises(UserError, match="ancestral sampler draws noise at every step: give it a generator"):
        ancestral(lambda x, phi, cond: x, start(1, 1, 1), ddpm(SCHEDULE))
