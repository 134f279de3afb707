"""What changes while training: weights, optimiser, schedules, averages, generators."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from polyarm.policies.policy import LOSS, State, clip_losses
from polyarm.spec import Clip, UserError


@dataclass
class Learner:
    """Everything that changes while training; `state` and `load` make resuming exact."""

    policy: Any  # a policies.policy.Trained that is an nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    ema: Any
    generator: torch.Generator
    accelerator: Any
    grad_clip: float | None
    carried: State | None = None
    step: int = 0

    @classmethod
    def create(cls, policy: Any, config: DictConfig, accelerator: Any) -> Learner:
        from diffusers.optimization import get_cosine_schedule_with_warmup
        from diffusers.training_utils import EMAModel

        t = config.train
        groups = parameter_groups(policy, t.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=t.lr, betas=tuple(t.betas), fused=True)
        schedule = get_cosine_schedule_with_warmup(optimizer, t.warmup_steps, t.steps)
        module, optimizer = accelerator.prepare(_Trainee(policy, int(t.noise_samples)), optimizer)
        ema = EMAModel(
            policy.parameters(), decay=t.ema_decay, use_ema_warmup=True, power=t.ema_power, inv_gamma=1.0, foreach=True
        )
        ema.to(accelerator.device)
        generator = torch.Generator(accelerator.device).manual_seed(t.seed * 1_000_003 + accelerator.process_index)
        return cls(policy, module, optimizer, schedule, ema, generator, accelerator, t.grad_clip)

    def update(self, clip: Clip) -> dict[str, Tensor]:
        """One optimiser step; returns the losses by name, detached: "loss" is what was minimised."""
        with self.accelerator.autocast():
            losses, carried = self.module(clip, self.generator, self.carried)
        self.carried = tuple(x.detach() for x in carried)
        self.accelerator.backward(losses[LOSS])
        if self.grad_clip is not None:
            self.accelerator.clip_grad_norm_(self.policy.parameters(), self.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.policy.parameters())
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def averaged(self) -> Averaged:
        """A context in which the policy has its EMA weights and is in eval mode."""
        return Averaged(self.policy, self.ema)

    def state(self) -> dict[str, Any]:
        """To be asked of every process at the same step: it gathers what each of them carries."""
        from accelerate.utils import gather_object

        mine = {
            "carried": None if self.carried is None else tuple(x.cpu() for x in self.carried),
            "generator": self.generator.get_state().cpu(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        }
        return {
            "step": self.step,
            "model": {name: x.detach().cpu() for name, x in self.policy.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict(),
            "processes": gather_object([mine]),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises `UserError` for that of another number of processes; on another device the noise is drawn
        anew from here, for its generator has another state."""
        rank, saved = self.accelerator.process_index, state.get("processes", [state])  # older ones: one process
        if len(saved) != self.accelerator.num_processes:
            raise UserError(
                f"this run was trained by {len(saved)} processes, now there are {self.accelerator.num_processes}: go on with "
                "as many, or begin in another output_dir"
            )
        self.step = state["step"]
        self.policy.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self._set_rate()
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)
        mine = saved[rank]
        self.carried = (
            None if mine["carried"] is None else tuple(x.to(self.accelerator.device) for x in mine["carried"])
        )
        torch.set_rng_state(mine["torch_rng"])
        if mine["generator"].shape == self.generator.get_state().shape:
            self.generator.set_state(mine["generator"])
            if mine["cuda_rng"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(mine["cuda_rng"][0])
        else:
            self.generator.manual_seed(self.generator.initial_seed() + self.step)
            print(f"begun on another device: from step {self.step} on the noise is drawn anew", file=sys.stderr)

    def _set_rate(self) -> None:
        """The rate of the next step is that of this run's schedule, which is another if `train.steps` is."""
        was = self.schedule.get_last_lr()[0]
        rates = [base * f(self.step) for base, f in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.schedule._last_lr = rates
        if rates[0] != was:
            print(
                f"train.steps is another than before: at step {self.step} the learning rate goes from {was:.3g} to "
                f"{rates[0]:.3g}, on a cosine that ends with the new train.steps",
                file=sys.stderr,
            )


class _Trainee(nn.Module):
    """The loss as a module's forward, which is what data-parallel wrappers hook."""

    def __init__(self, policy: Any, noise_samples: int):
        super().__init__()
        self.policy, self.noise_samples = policy, noise_samples

    def forward(self, clip: Clip, generator: torch.Generator, state: State | None) -> tuple[dict[str, Tensor], State]:
        return clip_losses(self.policy, clip, generator, state, noise_samples=self.noise_samples)


class Averaged:
    def __init__(self, policy: Any, ema: Any):
        self.policy, self.ema = policy, ema

    def __enter__(self) -> Any:
        self.ema.store(self.policy.parameters())
        self.ema.copy_to(self.policy.parameters())
        return self.policy.eval()

    def __exit__(self, *_: object) -> None:
        self.ema.restore(self.policy.parameters())
        self.policy.train()


def parameter_groups(policy: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on everything, except what a body names in `decay_groups() -> (decay, no decay)`."""
    exempt = {id(p) for m in policy.modules() if hasattr(m, "decay_groups") for p in m.decay_groups()[1]}  # type: ignore[operator]
    decay = [p for p in policy.parameters() if id(p) not in exempt]
    keep = [p for p in policy.parameters() if id(p) in exempt]
    groups = [{"params": decay, "weight_decay": weight_decay}]
    return [*groups, {"params": keep, "weight_decay": 0.0}] if keep else groups
