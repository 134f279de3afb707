"""Theorems of SeedPolicy's memory and of the chains it is trained on (sections 3, 6 and 12 of the published reference)."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyarm.datasets.chains import ChainLoader, split_chains, walk
from polyarm.datasets.windows import Windows
from polyarm.encoders.fuse import Fuse
from polyarm.encoders.state import State
from polyarm.encoders.temporal import diversity
from polyarm.policies.generate.angle import linear_flow
from polyarm.policies.generate.forms import Flow
from polyarm.policies.generate.sample import Sampler, euler
from polyarm.policies.policy import chunk, clip_loss, restart
from polyarm.spec import ActionSpace, Clip, ObsSpace, Scale, Spec, Stream, UserError
from tests.from_yaml import ResidualMlp, SeedPolicy, Sega

OBS = ObsSpace((Stream("seen", "state", (3,), ("x", "y", "z"), scale=Scale.identity(3)),), 10.0)
ACTION = ActionSpace(("u", "v"), ("m", "m"), "base", 10.0, scale=Scale.identity(2))
HORIZON, TO, TA = 8, 2, 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(frozen=False, **memory):
    """A policy off every zero and symmetric start, deterministic."""
    torch.manual_seed(0)
    policy = SeedPolicy(
        "seed", OBS, ACTION, HORIZON, TO, TA, partial(Fuse, state=State), partial(Sega, tokens=5, depth=2, heads=2, **memory),
        partial(ResidualMlp, width=16, blocks=1), Flow("actions"), Sampler(euler, linear_flow(3)),
        token_width=8, hidden=8, dropout=0.0, n_chunks=2, reset_interval=40, frozen=frozen,
    )  # fmt: skip
    draw = generator(1)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.2 * torch.randn(p.shape, generator=draw)
    return policy


@pytest.fixture(scope="module")
def policy():
    return make().eval()


def some(b, seed=0):
    """Observations of one call, and a state in the middle of an episode."""
    draw = generator(seed)
    seen = {"seen": torch.randn(b, TO, 3, generator=draw)}
    return seen, (torch.randn(b, 5, 8, generator=draw), torch.zeros(b, dtype=torch.bool))


def a_clip(b=3, k=2, seed=0, reset=False):
    draw = generator(seed)
    obs = {"seen": torch.randn(b, k, TO, 3, generator=draw)}
    return Clip(obs, torch.randn(b, k, HORIZON, 2, generator=draw), torch.full((b, k), reset))


@torch.no_grad()
def test_a_flagged_row_starts_anew_and_its_neighbours_do_not_notice(policy):
    """To the bit. Mutations: the flag ignored, the content restarted without gate 1, any(fresh) for every row."""
    obs, (content, fresh) = some(3)
    flag = torch.tensor([False, True, False])
    cond, (after, still_fresh) = policy.encode(obs, (content, flag))
    at_start, (after_start, _) = policy.encode(obs, policy.start(3))
    going_on, (after_going, _) = policy.encode(obs, (content, fresh))
    assert torch.equal(cond[1], at_start[1]) and torch.equal(after[1], after_start[1])
    assert torch.equal(cond[[0, 2]], going_on[[0, 2]]) and torch.equal(after[[0, 2]], after_going[[0, 2]])
    assert not torch.allclose(cond[1], going_on[1]) and not torch.allclose(after[1], after_going[1])
    assert not still_fresh.any()


@torch.no_grad()
def test_the_state_of_a_row_never_reaches_another(policy):
    """To the bit, over three calls. Mutation: a norm or an attention over the batch."""
    (content, fresh), answers = some(3)[1], []
    for other in (content[2], torch.full((5, 8), 9.0)):
        state, found = (torch.stack((content[0], content[1], other)), fresh), []
        for call in range(3):
            cond, state = policy.encode(some(3, call)[0], state)
            found += [cond, state[0]]
        answers.append(found)
    for one, two in zip(*answers, strict=True):
        assert torch.equal(one[:2], two[:2]) and not torch.allclose(one[2], two[2])


@torch.no_grad()
def test_a_chunk_from_the_start_is_what_training_sees_after_a_flag(policy):
    """Acting from `start` and training on a flagged window give the same condition, chunk and loss, whatever was
    carried. Mutations: restart of the content only, a gate of 1 only when there is no state at all."""
    clip = a_clip(k=1, reset=True)
    obs = {"seen": clip.obs["seen"][:, 0]}
    carried = restart(policy, some(3)[1], clip.reset[:, 0])
    trained, acted = policy.encode(obs, carried)[0], policy.encode(obs, policy.start(3))[0]
    assert torch.equal(trained, acted)
    assert torch.equal(chunk(policy, obs, carried, generator())[0], chunk(policy, obs, policy.start(3), generator())[0])
    losses = [clip_loss(policy, clip, generator(), state)[0] for state in (None, some(3)[1], some(3, 1)[1])]
    assert losses[0] == losses[1] == losses[2]


@torch.no_grad()
def test_two_calls_are_the_published_recursion(policy):
    """Section 3 with full states: S_1 = Inter_1 (gate 1), S_2 = G Inter_2 + (1 - G) S_1, and EObs_2 of S_1. What is carried is S - P,
    so that P is added once a call. Mutations: P added twice or never subtracted, a gated first call, EObs of S_2."""
    memory = policy.memory
    seen = [policy.token(policy.encoder(some(3, i)[0])) for i in range(2)]
    state, _, _ = memory.streams(memory.first.expand(3, -1, -1) + memory.place, seen[0])
    inter, enriched, logit = memory.streams(state, seen[1])
    gate = 1 / (1 + (-logit).exp())
    _, after = policy.encode(some(3, 0)[0], policy.start(3))
    cond, (content, _) = policy.encode(some(3, 1)[0], after)
    torch.testing.assert_close(cond, enriched)
    torch.testing.assert_close(content + memory.place, gate * inter + (1 - gate) * state)


def test_gradients_flow_from_window_to_window_and_stop_between_clips():
    """Truncated back-propagation through k windows. Mutations: the state detached in `encode`; not carried at all."""
    policy = make()
    first, second = (some(3, i)[0] for i in range(2))
    first["seen"].requires_grad_()
    _, state = policy.encode(first, policy.start(3))
    later = policy.encode(second, state)[0]
    assert torch.autograd.grad(later.square().sum(), first["seen"], retain_graph=True)[0].abs().min() > 0
    cut = policy.encode(second, tuple(x.detach() for x in state))[0]
    assert torch.equal(cut, later)
    assert torch.autograd.grad(cut.square().sum(), first["seen"], allow_unused=True)[0] is None


def test_a_frozen_memory_stays_to_the_bit_while_what_feeds_it_learns():
    """Section 8, finding 1. Mutations: first tokens and places left trainable, gradients cut at the memory."""
    policy = make(frozen=True)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, weight_decay=0.1)
    clip_loss(policy, a_clip(), generator())[0].backward()
    optimizer.step()
    kept = {name for name, p in policy.named_parameters() if torch.equal(p, before[name])}
    assert kept == {f"memory.{name}" for name, _ in policy.memory.named_parameters()}
    assert all(p.requires_grad for p in make().parameters())


def test_diversity_is_the_spread_between_tokens():
    """Mutations: over channels, over the batch."""
    alike = torch.randn(2, 1, 6, generator=generator()).expand(2, 4, 6)
    assert diversity(alike).max() < 1e-6
    apart = torch.tensor([-1.0, 1.0]).view(1, 2, 1) * torch.tensor([1.0, 3.0])
    assert diversity(torch.cat((apart, 10 * apart))).tolist() == pytest.approx([2 * 2**0.5, 20 * 2**0.5])


@torch.no_grad()
def test_the_remedies_keep_tokens_apart():
    """Section 8, finding 3. Orthogonal first tokens have the length asked for; with places and spread gates the tokens
    stay a hundred times further apart than as published. Mutations: any remedy without effect."""
    torch.manual_seed(0)
    sega = Sega(
        32, tokens=8, depth=1, heads=2, orthogonal=0.5, place_std=0.5, gate_bias=(-3.0, 1.0), gate_temperature=2.0
    )
    gram = sega.first[0] @ sega.first[0].T
    torch.testing.assert_close(gram, 0.25 * 32 * torch.eye(8), atol=1e-4, rtol=0)
    assert sega.place.std().item() == pytest.approx(0.5, rel=0.2)
    assert sega.gate(torch.full((1, 8, 1), 4.0)).flatten().logit().tolist() == pytest.approx(
        np.linspace(-1, 3, 8).tolist(), abs=1e-4
    )
    ends = []
    for memory in (sega, Sega(32, tokens=8, depth=1, heads=2)):
        content, fresh = memory.start(1), torch.tensor([True])
        for call in range(30):
            _, content = memory(content, fresh, torch.randn(1, 3, 32, generator=generator(call)))
            fresh = torch.tensor([False])
        ends.append(diversity(content + memory.place).item())
    assert ends[0] > 100 * ends[1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"heads": 3}, "width=16, tokens=60, depth=6, heads=3: .* multiple of heads"),
        ({"depth": 0}, "depth=0"),
        ({"orthogonal": 0.5}, "60 tokens of width 16 cannot be orthogonal: give at most 16"),
        ({"gate_bias": [1.0]}, r"gate_bias=\[1.0\]: give two numbers"),
        ({"gate_temperature": 0.0}, "gate_temperature=0: give a number above 0"),
    ],
)
def test_sega_refuses_sizes_that_cannot_be(sizes, message):
    with pytest.raises(UserError, match=message):
        Sega(16, **sizes)


# --- chains ----------------------------------------------------------------------------------------------------------


class Demos:
    """Every channel of a row counts rows: what is read shows where it was."""

    spec = Spec(OBS, ACTION)

    def __init__(self, lengths):
        self.episode_ends = np.cumsum(lengths)

    def stream(self, name):
        width = {"seen": 3, "action": 2}[name]
        return np.repeat(np.arange(self.episode_ends[-1], dtype=np.float32)[:, None], width, 1)


def windows(*lengths):
    return Windows(Demos(lengths), Demos.spec, horizon=HORIZON, n_obs_steps=TO, n_action_steps=TA)


@pytest.fixture(scope="module")
def many():
    return windows(30, 12, 25, 40)


def rows(loader, n, first=0):
    """[n b k 2] of a loader's batches."""
    return np.stack([np.stack(loader.rows(first + i), -1) for i in range(n)])


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 8))
def test_the_chains_of_an_episode_share_out_its_windows(counts, step):
    """Mutations: a window lost at the end, chains across episodes, another stride."""
    episode = np.repeat(np.arange(len(counts)), counts)
    chains = split_chains(episode, step)
    assert sorted(np.concatenate(chains).tolist()) == list(range(len(episode)))
    assert all(len(c) and (np.diff(c) == step).all() and len(set(episode[c])) == 1 for c in chains)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(1, 8), st.integers(1, 5), st.integers(1, 7), st.integers(0, 9))
def test_a_slot_goes_on_along_its_chain_or_is_flagged(counts, step, slots, interval, seed):
    """Every unflagged window follows the one above it; flags are as rare as chains and interval allow; one slot sees every
    window once. Mutations: a flag lost at a chain's start, slots exchanged, a chain left before its end."""
    chains = split_chains(np.repeat(np.arange(len(counts)), counts), step)
    total = sum(counts)
    follows = {int(a): int(b) for c in chains for a, b in pairwise(c)}
    place = {int(w): i for c in chains for i, w in enumerate(c)}
    items, reset = walk(chains, slots, total, np.random.default_rng(seed), interval)
    assert reset[0].all()
    for above, here, flag in zip(items[:-1].flat, items[1:].flat, reset[1:].flat, strict=True):
        assert flag == (place[here] % interval == 0)
        assert place[here] == 0 or follows[above] == here
    alone, _ = walk(chains, 1, total, np.random.default_rng(seed), interval)
    assert sorted(alone[:, 0]) == list(range(total))


def test_batches_of_k_are_those_of_one_taken_k_at_a_time(many):
    """Mutation: k windows of each chain cut off separately."""
    ones = rows(ChainLoader(many, 4, seed=3), 12)
    threes = rows(ChainLoader(many, 4, k=3, seed=3), 4)
    assert np.array_equal(threes, ones.reshape(4, 3, 4, 2).swapaxes(1, 2))


def test_a_loader_goes_on_exactly_where_another_stopped(many):
    """Across epochs, flags included; epochs differ, runs of one seed do not. Mutations: a generator that is not the epoch's,
    a start_step off by one."""
    whole = ChainLoader(many, 4, k=2, seed=3)
    n = 2 * whole.steps_per_epoch + 3
    expected = rows(whole, n)
    assert expected[:: whole.steps_per_epoch, :, 0, 1].all(), "an epoch starts with every state anew"
    assert not np.array_equal(expected[0], expected[whole.steps_per_epoch])
    assert not np.array_equal(expected, rows(ChainLoader(many, 4, k=2, seed=4), n))
    for first in (1, whole.steps_per_epoch, n - 2):
        batches = iter(ChainLoader(many, 4, k=2, seed=3, start_step=first))
        for want in expected[first : first + 2]:
            clip = next(batches)
            assert np.array_equal(clip.reset, want[..., 1])
            assert np.array_equal(clip.action, many.__getitems__(want[..., 0].ravel()).action.reshape(4, 2, HORIZON, 2))


def test_ranks_share_out_the_slots_of_one_walk(many):
    """Mutation: every rank walks alike."""
    one = rows(ChainLoader(many, 6, seed=1), 5)
    ranks = [rows(ChainLoader(many, 3, seed=1, rank=rank, world=2), 5) for rank in range(2)]
    assert np.array_equal(one, np.concatenate(ranks, 1))


def test_a_row_continues_the_row_of_the_batch_before(many):
    """In the data itself: unless flagged, a window's newest observation is Ta rows after the one before it, also across
    batches. Mutations: rows shuffled within a batch, flags of the windows in place of the walk's."""
    batches = iter(ChainLoader(many, 5, k=2, interval=3, seed=0))
    clips = [next(batches) for _ in range(6)]
    newest = torch.cat([c.obs["seen"][:, :, -1, 0] for c in clips], 1)
    reset = torch.cat([c.reset for c in clips], 1)
    ends = torch.tensor(many._last)
    inside = ~torch.isin(newest[:, 1:].long(), ends)  # past an episode's end its last row repeats
    step = newest.diff(dim=1)
    assert (step[~reset[:, 1:] & inside] == TA).all()
    assert reset[:, 0].all() and 0.2 < reset[:, 1:].float().mean() < 0.6


def test_one_epoch_shows_about_every_window_the_same_every_time():
    """With more rows asked for than there are chains. Mutations: batch_size rows of repeated chains, a random order."""
    few = windows(20)
    loader = ChainLoader(few, 64, k=2, seed=0)
    first, again = ([c.action for c in loader.one_epoch()] for _ in range(2))
    assert len(first[0]) == len(loader.chains) == TA
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert set(torch.cat(first, 1)[..., -1, 0].flatten().tolist()) == set(
        few.__getitems__(np.arange(len(few))).action[..., -1, 0].flatten().tolist()
    )


def test_too_few_windows_are_refused(many):
    with pytest.raises(UserError, match="batch_size=200 rows of 2 windows for 1 processes with 95 windows: lower one"):
        iter(ChainLoader(many, 200, k=2, seed=0))
    with pytest.raises(UserError, match="k=0, .* each must be at least 1"):
        ChainLoader(many, 4, k=0, seed=0)


# --- behaviour -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recall_demos(tmp_path_factory):
    from polyarm.collect import collect
    from polyarm.config import compose
    from polyarm.datasets.store import Store

    task, path = compose(["task=recall"]).task, tmp_path_factory.mktemp("recall") / "demos.zarr"
    collect(task.env_id, {}, task.expert, path, 200, progress=False)
    return Store.open(path)


def trained(demos, *overrides):
    """The policy with averaged weights, after about a minute of one core."""
    from accelerate import Accelerator

    from polyarm.config import build, compose
    from polyarm.datasets.scale import fit_spec
    from polyarm.learner import Learner

    config = compose(["policy=seed", "task=recall", "train.batch_size=48", "train.steps=800", *overrides])
    spec = fit_spec(demos, demos.spec, config.task.obs_scale, config.task.action_scale, range(200))
    torch.manual_seed(0)
    policy = build(config.policy, spec)
    learner = Learner.create(policy, config, Accelerator(cpu=True))
    data = Windows(demos, spec, horizon=16, n_obs_steps=2, n_action_steps=8)
    batches = iter(ChainLoader(data, 48, k=policy.n_chunks, interval=policy.reset_interval, seed=0))
    while learner.step < config.train.steps:
        learner.update(next(batches))
    learner.averaged().__enter__()
    return policy


def success(policy, forgets=False):
    """Rate on 100 fresh seeds; `forgets`: the state is as at the start at every chunk."""
    from polyarm.eval.rollout import rollout
    from polyarm.sim.vector import ShardedVectorEnv

    encode, worlds = policy.encode, ShardedVectorEnv("polyarm/Recall-v0", {}, 50, 0)
    if forgets:
        policy.encode = lambda obs, state, generator=None: (encode(obs, policy.start(len(state[1])))[0], state)
    played = rollout(policy, worlds, range(100_000, 100_100))
    policy.encode = encode
    worlds.close()
    return np.mean([p.outcome.success for p in played])


@pytest.mark.slow
def test_memory_solves_recall(recall_demos):
    """And not the body: with its state wiped the same policy fails. Mutations: the state not carried by agent or clip,
    chains of another stride than Ta."""
    policy = trained(recall_demos)
    assert success(policy) >= 0.9
    assert success(policy, forgets=True) <= 0.3


@pytest.mark.slow
def test_without_memory_training_cannot_do_better_than_chance(recall_demos):
    """Reset before every chunk, in training and acting: 0.148 is the best, 0.28 four standard deviations above it.
    Mutation: a clock or a flag in Recall's observations."""
    assert success(trained(recall_demos, "policy.reset_interval=1"), forgets=True) <= 0.28


def test_forgetting_makes_every_chunk_the_first():
    """Mutation: let `forget` keep the incoming state."""
    policy = make().eval()
    obs = {n: torch.randn(3, policy.n_obs_steps, *policy.obs_space[n].shape) for n in policy.obs_space.names}
    first, later = policy.encode(obs, policy.start(3))
    remembered, _ = policy.encode(obs, later)
    policy.forget = True
    forgotten, _ = policy.encode(obs, later)
    assert torch.equal(forgotten, first) and not torch.equal(remembered, first)
