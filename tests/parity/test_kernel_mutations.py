"""The theorems about the kernel have teeth: each of these one-line errors, put into a copy of the kernel, turns one red.

    flow velocity with the wrong sign
    sine and cosine swapped where the action is solved for
    EDM's target with the wrong sign
    EDM's clock log(sigma) / 2
    training angles applied to the wrong side: noise and action swapped
    leading grid that is the trailing one
    Karras grid with rho inverted
    flow time walked on even angles
    Euler that forgets to move the noise to the next angle
    clipped DDIM that does not clip
    ancestral variance not 1 - ratio^2
    Heun without averaging the slopes
    multistep with its stride ratio inverted
    clip before mixing
    guidance weights the wrong way round
    energy gradient not scaled by the variance
    one generator for all rows

Kept so: the text that is replaced must occur exactly once in the kernel, and the same theorem must hold for the copy
without the error.
"""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import polyarm.policies.generate
from polyarm.policies.generate import angle, compose, energy, forms, sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers with numpy 2

KERNEL = Path(polyarm.policies.generate.__file__).parent
MODULES = {m.__name__.rpartition(".")[2]: m for m in (angle, compose, energy, forms, sample)}
TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutation:
    what: str
    where: str
    old: str
    new: str
    theorem: str  # file::function
    arguments: dict[str, Any] = field(default_factory=dict)


MUTATIONS = (
    Mutation(
        "flow velocity with the wrong sign",
        "forms",
        "(-1.0, 1.0)",
        "(1.0, -1.0)",
        "parity/test_kernel_numbers.py::test_flow_euler_numbers",
        {"steps": 2, "ends": (0.5, 0.16, 0.3)},
    ),
    Mutation(
        "sine and cosine swapped where the action is solved for",
        "forms",
        "(q * x - sin * out)",
        "(q * x - cos * out)",
        "property/test_kernel_forms.py::test_leave_undoes_target",
        {"name": "diffusion noise"},
    ),
    Mutation(
        "EDM's target with the wrong sign",
        "forms",
        "-self.scale * cos / r",
        "self.scale * cos / r",
        "property/test_kernel_forms.py::test_every_form_reads_as_the_same_denoiser",
        {"name": "karras 0.5"},
    ),
    Mutation(
        "EDM's clock log(sigma) / 2",
        "forms",
        ".log() / 4",
        ".log() / 2",
        "property/test_kernel_forms.py::test_every_form_reads_as_the_same_denoiser",
        {"name": "karras 0.5"},
    ),
    Mutation(
        "training angles applied to the wrong side: noise and action swapped",
        "forms",
        "x = wide(phi).cos() * action + wide(phi).sin() * noise",
        "x = wide(phi).sin() * action + wide(phi).cos() * noise",
        "property/test_kernel_forms.py::test_the_posterior_mean_is_the_minimum_of_the_loss",
        {"name": "diffusion noise"},
    ),
    Mutation(
        "leading grid that is the trailing one",
        "angle",
        "schedule.angles[_leading(schedule, steps)]",
        "schedule.angles[_leading(schedule, steps) + schedule.steps // steps - 1]",
        "parity/test_kernel_diffusers.py::test_ddim_leading_grid",
        {"steps": 10, "want": range(90, -1, -10)},
    ),
    Mutation(
        "Karras grid with rho inverted",
        "angle",
        "- sigma_max ** (1 / rho))) ** rho",
        "- sigma_max ** (1 / rho))) ** (1 / rho)",
        "parity/test_kernel_numbers.py::test_karras_grid_is_equation_5",
        {"steps": 18},
    ),
    Mutation(
        "flow time walked on even angles",
        "angle",
        "return torch.atan2(t, 1 - t)",
        "return t * torch.pi / 2",
        "parity/test_kernel_numbers.py::test_flow_euler_numbers",
        {"steps": 3, "ends": (0.59411765, 0.09411765, 0.3)},
    ),
    Mutation(
        "Euler that forgets to move the noise to the next angle",
        "sample",
        "x = (nxt.cos() * action + nxt.sin() * (x - now.cos() * action) / now.sin()).to(x)",
        "x = (nxt.cos() * action + (x - now.cos() * action)).to(x)",
        "parity/test_kernel_diffusers.py::test_two_schedules_in_one_chunk_euler",
    ),
    Mutation(
        "clipped DDIM that does not clip",
        "sample",
        "action.clamp(-limit, limit)",
        "action",
        "parity/test_kernel_diffusers.py::test_ddim_released_numbers_and_what_euler_gives_instead",
    ),
    Mutation(
        "ancestral variance not 1 - ratio^2",
        "sample",
        "(1 - ratio**2).sqrt()",
        "(1 - ratio).sqrt()",
        "parity/test_kernel_diffusers.py::test_ddpm_parity",
        {"clip_sample": True},
    ),
    Mutation(
        "Heun without averaging the slopes",
        "sample",
        "(slope + next_slope) / 2",
        "next_slope",
        "parity/test_kernel_numbers.py::test_heun_on_the_karras_line_is_edm_algorithm_1",
    ),
    Mutation(
        "multistep with its stride ratio inverted",
        "sample",
        "stride / (2 * stride_before)",
        "stride_before / (2 * stride)",
        "parity/test_kernel_diffusers.py::test_multistep_parity",
        {"steps": 10, "predict": "velocity"},
    ),
    Mutation(
        "clip before mixing",
        "compose",
        "w * part(x, phi, cond)",
        "w * part(x, phi, cond).clamp(-1, 1)",
        "property/test_kernel_compose.py::test_clip_once_after_mixing",
    ),
    Mutation(
        "guidance weights the wrong way round",
        "compose",
        "mix([denoise, denoise], (scale, 1 - scale))",
        "mix([denoise, denoise], (1 - scale, scale))",
        "property/test_kernel_compose.py::test_guidance_scale_0_ignores_the_condition_and_1_is_conditional",
    ),
    Mutation(
        "energy gradient not scaled by the variance",
        "energy",
        "wide(phi).sin() ** 2 * gradient",
        "wide(phi).sin() * gradient",
        "property/test_kernel_forms.py::test_gradient_of_a_noise_conditional_energy_is_the_same_denoiser",
    ),
    Mutation(
        "one generator for all rows",
        "forms",
        "generator=g, device=g.device, dtype=like.dtype) for g in generator",
        "generator=generator[0], device=g.device, dtype=like.dtype) for g in generator",
        "property/test_kernel_sample.py::test_a_generator_a_row_makes_rows_independent_of_their_batch",
    ),
)


def theorem_on(kernel: Path, theorem: str, monkeypatch) -> Callable[..., None]:
    """The test function, imported against another kernel folder."""
    package = polyarm.policies.generate
    monkeypatch.setattr(package, "__path__", [str(kernel)])
    for name, module in MODULES.items():
        monkeypatch.delitem(sys.modules, module.__name__)
        monkeypatch.delattr(package, name)
    file, _, function = theorem.partition("::")
    spec = importlib.util.spec_from_file_location("theorem", TESTS / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert str(kernel) == str(Path(sys.modules[angle.__name__].__file__ or "").parent)
    return getattr(module, function)


@pytest.mark.parametrize("mutated", [False, True], ids=["as it is", "mutated"])
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.what)
def test_a_theorem_turns_red(mutation, mutated, tmp_path, monkeypatch):
    """One error in the copy: the named theorem fails. None: it holds."""
    assert mutation.what in str(__doc__)
    kernel = tmp_path / "generate"
    shutil.copytree(KERNEL, kernel, ignore=shutil.ignore_patterns("__pycache__"))
    file = kernel / f"{mutation.where}.py"
    source = file.read_text()
    assert source.count(mutation.old) == 1, f"{mutation.old!r} occurs {source.count(mutation.old)} times in {file.name}"
    if mutated:
        file.write_text(source.replace(mutation.old, mutation.new))
    theorem = theorem_on(kernel, mutation.theorem, monkeypatch)
    with pytest.raises(AssertionError) if mutated else nullcontext():
        theorem(**mutation.arguments)
