"""Every policy of configs/policy takes every encoder of configs/encoder, by yaml alone, and encodes once a chunk.

Mutations that turn it red: an encoder's yaml without `text`; a policy that asks for features by their number; `encode` called
from `denoise`; an encoder whose parameters the optimiser does not get.
"""

import json

import pytest
import torch

from polyarm.config import build, compose, options
from polyarm.policies import checkpoint
from polyarm.policies.policy import clip_loss, plan
from polyarm.spec import ActionSpace, Clip, ObsSpace, Scale, Spec, Stream
from polyarm.text import text_row

STREAMS = (
    Stream("front", "image", (40, 40, 3)),
    Stream("arm", "state", (2,), ("a", "b"), ("rad", "rad"), scale=Scale.identity(2)),
    Stream("task", "text", (12,)),
)
SPEC = Spec(ObsSpace(STREAMS, 10.0), ActionSpace(("a", "b"), ("rad", "rad"), "joint", 10.0, scale=Scale.identity(2)))
FUSED = [e for e in options("encoder") if compose([f"encoder={e}"]).policy.encoder._target_.endswith(".Fuse")]
"""Those that make one vector of what is seen; policies that look at tokens of a scene bring their own."""
POLICIES = [p for p in options("policy") if compose([f"policy={p}"]).policy.encoder._target_.endswith(".Fuse")]
SMALL = {
    "timm": ["policy.encoder.image.name=test_resnet"],
    "seed_image": ["policy.encoder.image.short_side=32"],
    "language": ["policy.encoder.text.name={clip}"],
}
BODY = ["body=mlp", "policy.body.width=16", "policy.body.blocks=1"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a tiny CLIP text model."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    words = ["!", '"', *"puton", *(c + "</w>" for c in "puton"), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    config = transformers.CLIPTextConfig(vocab_size=len(words), max_position_embeddings=20, **sizes, **ends)
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """For the policies that learn from another one."""
    folder = tmp_path_factory.mktemp("teacher") / "c"
    config = compose(["policy=flow", *BODY])
    policy = build(config.policy, SPEC)
    for p in policy.parameters():  # an untrained head answers 0 at every noise angle, and no teacher may
        torch.nn.init.normal_(p, std=0.1)
    checkpoint.save(folder, config, Spec(SPEC.obs, policy.action_space), policy.state_dict())
    return str(folder)


def built(request, policy, encoder):
    words = [f"policy={policy}", f"encoder={encoder}", *BODY]
    for word in SMALL.get(encoder, ()):
        words.append(word.format(clip=request.getfixturevalue("clip")) if "{clip}" in word else word)
    if "teacher" in compose(words).policy:
        words.append(f"policy.teacher={request.getfixturevalue('teacher')}")
    torch.manual_seed(0)
    return build(compose(words).policy, SPEC)


def observed(policy, b=2):
    draw, o = torch.Generator().manual_seed(0), policy.n_obs_steps
    told = torch.stack([torch.tensor(text_row(text, 12)) for text in ("put", "not on")])
    return {
        "front": torch.randint(0, 256, (b, o, 40, 40, 3), dtype=torch.uint8, generator=draw),
        "arm": torch.randn(b, o, 2, generator=draw),
        "task": told[:, None].expand(b, o, 12),
    }


@pytest.mark.parametrize("encoder", FUSED)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_trains_with_every_encoder(request, policy, encoder):
    """Two steps, since a body's last layer may start at 0: then every stream's own encoder has moved, or has no parameters."""
    policy = built(request, policy, encoder).train()
    policy.requires_grad_(True)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    before = [[p.clone() for p in e.parameters()] for e in policy.encoder.encoders]
    generator = torch.Generator().manual_seed(0)
    clip = Clip(
        {name: x[:, None] for name, x in observed(policy).items()},
        torch.rand(2, 1, policy.action_space.horizon, 2, generator=generator) * 2 - 1,
        torch.ones(2, 1, dtype=torch.bool),
    )
    for _ in range(2):
        loss, _ = clip_loss(policy, clip, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    for stream, old, e in zip(STREAMS, before, policy.encoder.encoders, strict=True):
        new = list(e.parameters())
        assert not new or any(not torch.equal(a, b) for a, b in zip(old, new, strict=True)), stream.name


@pytest.mark.parametrize("name", POLICIES)
def test_a_chunk_is_one_pass_of_the_encoder(request, name):
    """However many denoising steps it takes, and whatever is asked of the chunk afterwards."""
    policy = built(request, name, "scratch").eval()
    passes, asked, denoise = [], [], policy.denoise

    def counted(*given):
        asked.append(1)
        return denoise(*given)

    policy.denoise = counted
    for module in (policy.encoder, *policy.encoder.encoders):
        module.register_forward_hook(lambda m, *_: passes.append(id(m)))
    with torch.no_grad():
        action, _, _ = plan(policy, observed(policy), policy.start(2), torch.Generator().manual_seed(0))
    assert action.shape == (2, policy.action_space.horizon, 2)
    assert len(asked) >= 1 and len(passes) == len(set(passes)) == 1 + len(STREAMS)
