"""The bodies that policies share. One contract:

    net = Body(action_dim, horizon, n_obs_steps, cond_dim, **sizes)
    net(x: [b h d], clock: [b], cond: [b o c]) -> [b h d]

`clock` is in percent of the noise schedule, as the published 100-step DDPM networks count: 0 is almost clean, 99 almost
noise. It may be fractional, and outside 0..99 for families with another range. `cond` are features per observation step.
"""

from polyarm.policies.nets.mlp import ResidualMlp
from polyarm.policies.nets.transformer import ChunkTransformer
from polyarm.policies.nets.unet import Unet1d

__all__ = ["ChunkTransformer", "ResidualMlp", "Unet1d"]
