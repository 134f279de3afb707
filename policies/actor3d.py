"""3D Diffuser Actor, and 3D FlowMatch Actor: the same policy with another form.

Ke, Gkanatsios and Fragkiadaki, "3D Diffuser Actor: Policy Diffusion with 3D Scene Representations" (CoRL 2024), and
Gkanatsios et al., "3D FlowMatch Actor" (2025). Images are lifted by point maps to tokens of the scene; rows of a noisy chunk
of gripper poses are tokens too, and attend to the scene by where things lie to each other. Rows may follow each other at
the world's rate or be keyposes: whatever a row of the demonstrations is.

Published: two DDPM schedules, one for positions and one for rotations, which share the step (`rotation_schedule`), so that the
grid of angles is one a channel. Successor: rectified flow, one angle for all. The opening is not noised: the last step's
answer is executed. Where actions are relative to the gripper, the scene is moved to it as well.

Carried between chunks: nothing. The encoder runs once a chunk, with what the body asks of the scene, and the rest of the body once a denoising step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyarm.encoders.fuse import Fuse
from polyarm.policies.generate import forms
from polyarm.policies.generate.angle import Schedule, beside, wide
from polyarm.policies.generate.sample import Sampler
from polyarm.policies.nets.actor import ActorHead, Answer, Scene
from polyarm.policies.nets.scene import SceneEncoder
from polyarm.policies.policy import Obs, Plain, State, base, require_chunk, require_scale
from polyarm.rotation import CHANNELS
from polyarm.spec import ActionSpace, ObsSpace, UserError, unknown


class ActorPolicy(Plain, nn.Module):
    """`encoder(obs_space, history=, gripper=, position=)` and `body(rotation=, opening=, history=, words=, width=, heads=)` are built here, the
    body as wide as the scene's tokens.

    `position`: the three action channels that are where the gripper shall be. `gripper`: the state stream with channels of
    these names, where it is. Another channel that belongs to no rotation is the opening. `weights` of the losses, by name.
    `metres`: coordinates of tokens are metres, as in the successor; otherwise scaled as the positions of actions are.
    """

    position: Tensor
    rotation: Tensor
    opening: Tensor

    def __init__(
        self,
        name: str,
        obs_space: ObsSpace,
        action_space: ActionSpace,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        encoder: Callable[..., SceneEncoder],
        body: Callable[..., ActorHead],
        form: forms.Diffusion | forms.Flow,
        rotation_schedule: Schedule | None,
        sampler: Sampler,
        position: Sequence[str],
        gripper: str,
        metres: bool,
        weights: Mapping[str, float],
    ):
        super().__init__()
        require_chunk(horizon, n_obs_steps, n_action_steps)
        self.name, self.obs_space = name, obs_space
        self.action_space = replace(action_space, horizon=horizon)
        self.n_obs_steps, self.n_action_steps = n_obs_steps, n_action_steps
        for part, channels in zip(("position", "rotation", "opening"), _parts(action_space, position), strict=True):
            self.register_buffer(part, torch.tensor(channels, dtype=torch.long), persistent=False)
        self.gripper, self.metres, self.weights = gripper, metres, dict(weights)
        self.form = self.turn_form = form
        self.rotation_schedule = rotation_schedule
        if rotation_schedule is not None:
            if not isinstance(form, forms.Diffusion):
                raise UserError(
                    "policy.rotation_schedule stands beside a DDPM schedule: give null with this policy.form"
                )
            self.turn_form = replace(form, schedule=rotation_schedule)
        grid = sampler.angles
        self.sampler = sampler if grid.ndim == 2 else replace(sampler, angles=self._spread(grid))
        if getattr(encoder, "func", encoder) is Fuse:
            raise UserError(
                "policy.encoder makes one vector of what is seen, and ActorPolicy looks at tokens of a scene: give encoder=scene"
            )
        self.encoder = encoder(obs_space, history=n_obs_steps, gripper=gripper, position=position)
        self.body = body(
            rotation=len(self.rotation), opening=len(self.opening), history=n_obs_steps,
            words=self.encoder.words is not None,
        )  # fmt: skip
        if self.body.width != self.encoder.width:
            raise UserError(
                f"policy.body is {self.body.width} wide, policy.encoder {self.encoder.width}: give both the same width"
            )
        self.bodies = (self.body,)
        _require_scene(self)

    def start(self, b: int) -> State:
        return ()

    def encode(self, obs: Obs, state: State, generator: torch.Generator | None = None) -> tuple[Scene, State]:
        under = base(self, obs)
        gain, offset = self._scale(obs[self.gripper])

        def place(xyz: Float[Tensor, "b n 3"]) -> Float[Tensor, "b n 3"]:
            moved = xyz if under is None else xyz - under[..., self.position]
            return moved if self.metres else moved * gain + offset

        return self.body.keep(self.encoder(obs, place, generator)), state

    def denoise(self, x: Float[Tensor, "b h d"], phi: Tensor, cond: Scene) -> Float[Tensor, "b h d"]:
        if self.rotation_schedule is not None and phi.ndim == 1:
            raise UserError(
                f"policy {self.name} noises positions and rotations by schedules of their own, and was asked at one angle for both: mix "
                "or teach with policy=actor3d, which has one"
            )
        answer = self._ask(x, phi, cond)
        clean = torch.zeros_like(x)
        for channels, form, out in self._noised(answer):
            clean[..., channels] = form.leave(out, x[..., channels], self._angle(phi, channels)).to(x)
        clean[..., self.opening] = (2 * answer.opening.sigmoid() - 1).to(x)
        return clean

    def loss(
        self, action: Float[Tensor, "b h d"], cond: Scene, generator: torch.Generator
    ) -> dict[str, Float[Tensor, ""]]:
        """Mean absolute errors of what the form predicts, and the cross entropy of the opening, each by its weight."""
        phi = self._spread(self.form.draw(len(action), generator).to(action))
        noise = forms.paired(self.form, forms.normal(action, generator), action, None)
        answer = self._ask(wide(phi).cos() * action + wide(phi).sin() * noise, phi, cond)
        losses = {}
        for name, (channels, form, out) in zip(("position", "rotation"), self._noised(answer), strict=False):
            target = form.target(action[..., channels], noise[..., channels], self._angle(phi, channels))
            losses[name] = self.weights[name] * (out - target).abs().mean()
        if len(self.opening):
            open_share = (action[..., self.opening] + 1) / 2
            loss = nn.functional.binary_cross_entropy_with_logits(answer.opening, open_share.clamp(0, 1))
            losses["opening"] = self.weights["opening"] * loss
        return losses

    def _ask(self, x: Tensor, phi: Tensor, cond: Scene) -> Answer:
        position, clock = self.form.enter(x[..., self.position], self._angle(phi, self.position))
        rotation = x[..., self.rotation]
        if len(self.rotation):
            rotation, _ = self.turn_form.enter(rotation, self._angle(phi, self.rotation))
        gain, offset = self._scale(x)
        xyz = (position - offset) / gain if self.metres else position
        return self.body(torch.cat((position, rotation), dim=-1), xyz, clock * self.form.percent, cond)

    def _noised(self, answer: Answer) -> list[tuple[Tensor, forms.Diffusion | forms.Flow, Tensor]]:
        parts = [(self.position, self.form, answer.position), (self.rotation, self.turn_form, answer.rotation)]
        return [part for part in parts if len(part[0])]

    def _spread(self, phi: Tensor) -> Tensor:
        """Angles of positions [n] -> one a channel [n d]; as they are where there is one schedule."""
        if self.rotation_schedule is None:
            return phi
        each = phi[:, None].repeat(1, self.action_space.width)
        turned = beside(phi, self.form.schedule, self.rotation_schedule)  # type: ignore[union-attr]
        each[:, self.rotation.to(phi.device)] = turned[:, None]
        return each

    def _angle(self, phi: Tensor, channels: Tensor) -> Tensor:
        return phi if phi.ndim == 1 else phi[:, channels[0]]

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(gain, offset) of the action's positions."""
        scale, at = require_scale(self.action_space), self.position.tolist()
        return like.new_tensor([scale.gain[i] for i in at]), like.new_tensor([scale.offset[i] for i in at])


def _parts(space: ActionSpace, position: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    """Channels of positions, of the rotation and of the opening. Raises UserError for a row that is no pose."""
    for name in position:
        if name not in space.names:
            raise unknown("action channel of policy.position", name, space.names)
    if len(position) != 3 or len(space.rotations) > 1:
        raise UserError(
            f"policy.position={list(position)} and {len(space.rotations)} rotations a row: give three channels, of one gripper"
        )
    if space.rotations and not space.rotation.startswith("rot6d"):
        raise UserError(
            f"rotations are {space.rotation} in the action: learn them as six numbers with task.action_rotation=rot6d_columns"
        )
    turn = [i for start in space.rotations for i in range(start, start + len(CHANNELS[space.rotation]))]
    at = [space.names.index(name) for name in position]
    rest = [i for i in range(space.width) if i not in (*at, *turn)]
    if len(rest) > 1:
        raise UserError(
            f"action channels {', '.join(space.names[i] for i in rest)} are neither position nor rotation: ActorPolicy takes one "
            "of them, the gripper's opening; choose a task whose actions are poses"
        )
    return at, turn, rest


def _require_scene(policy: ActorPolicy) -> None:
    """Refuse streams that would not be looked at, frames that differ, and an opening whose ends are not known."""
    space, action = policy.obs_space, policy.action_space
    seen = policy.encoder
    looked = {policy.gripper, seen.text_stream, *seen.places, *seen.cameras, *seen.cameras.values()}
    for stream in space.streams:
        if stream.name not in looked:
            raise UserError(
                f"ActorPolicy does not look at stream {stream.name!r} of kind {stream.kind}: leave it out of task.streams"
            )
    for name in (policy.gripper, *seen.places, *seen.cameras.values()):
        if space[name].frame != action.frame:
            raise UserError(
                f"stream {name!r} is in frame {space[name].frame!r}, the action in {action.frame!r}: give both in one frame"
            )
    reach = require_scale(action).reach
    if len(policy.opening) and reach is not None and reach > 1 + 1e-4:
        raise UserError(
            f"the demonstrations' actions reach {reach:.3g} as they are scaled, where open and shut must be 1 and -1: train with "
            "task.action_scale=limits"
        )
