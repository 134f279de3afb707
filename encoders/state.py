"""Low-dimensional streams: joint angles, poses, goals."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from polyarm.spec import Stream


class State(nn.Module):
    """The scaled channels as they are, or through an MLP of these hidden widths, each with a ReLU, and a linear map to
    `features` (None: the last hidden ones). With a generator, as in training, every channel is moved by normal noise of `noise_std`,
    in scaled units: what a network cannot tell apart it does not learn by heart."""

    def __init__(
        self, stream: Stream, hidden: Sequence[int] = (), features: int | None = None, noise_std: float = 0.0
    ) -> None:
        super().__init__()
        self.noise_std = noise_std
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise((stream.shape[0], *hidden)):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.width = hidden[-1] if hidden else stream.shape[0]
        if features is not None:
            layers.append(nn.Linear(self.width, features))
            self.width = features
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "n d"], generator: Generator | None = None) -> Float[Tensor, "n c"]:
        if generator is not None and self.noise_std:
            x = x + self.noise_std * torch.randn(x.shape, generator=generator, device=generator.device).to(x)
        return self.mlp(x)
