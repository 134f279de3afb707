# %% [markdown]
# # The first hour
#
# Demonstrations, a look at them, a policy, an honest figure, two policies mixed, and your own data. Run it top to bottom
# (`python docs/first_hour.py`), or cell by cell: VS Code, Spyder and jupytext take `# %%` for cells. Everything lies in
# outputs/first_hour; a second run goes on with what is there.

# %%
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import polyarm

SHARE = 1.0  # of the demonstrations, training steps and episodes; 0.02 runs through in a minute and learns nothing
HOME = Path("outputs/first_hour")


def some(n):
    return max(4, round(SHARE * n))


# %% [markdown]
# ## Collect
# A scripted expert puts a cube on a target. Collecting starts processes, so it is a command of its own.

# %%
DEMOS = HOME / "demos.zarr"
collect = ["collect", "task=pick_place", f"collect.episodes={some(100)}", f"collect.path={DEMOS}"]
subprocess.run([sys.executable, "-m", "polyarm.cli", *collect], check=True)

# %% [markdown]
# ## Look at the data
# Never train on what you have not looked at: ranges, units, how long episodes are.

# %%
from polyarm.datasets.info import info, show
from polyarm.datasets.store import open_store

show(info(DEMOS))
demos = open_store(DEMOS)
first = slice(0, int(demos.episode_ends[0]))
time_s, action = demos.read("time_s")[first], demos.read("action")[first]
plt.figure(figsize=(7, 3))
plt.plot(time_s, action, label=demos.spec.action.names)
plt.xlabel("time, s")
plt.ylabel(f"action, {demos.spec.action.units[0]}")
plt.legend(fontsize="x-small")
plt.title("what the expert did in its first episode")
plt.savefig(HOME / "actions.png", bbox_inches="tight")

# %% [markdown]
# ## Train
# A flow policy, which draws chunks of 16 actions from noise. The same call goes on where it stopped, also after a kill.

# %%
common = {
    "task": "pick_place",
    "task.demos.path": str(DEMOS),
    "train.steps": some(3000),
    "train.batch_size": 64 if SHARE == 1 else 16,
    "train.val_every": some(300),
    "train.log_every": some(50),
}
flow = polyarm.train(common, policy="flow", output_dir=HOME / "flow")
print(flow["step"], flow["loss"])

# %%
from polyarm.log import read_log

log = read_log(HOME / "flow" / "log.jsonl")
plt.figure(figsize=(7, 3))
for key, label in (("loss", "training"), ("val_loss", "held-out episodes")):
    rows = [row for row in log if key in row]
    plt.plot([row["step"] for row in rows], [row[key] for row in rows], label=label)
plt.yscale("log")
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
plt.savefig(HOME / "loss.png", bbox_inches="tight")

# %% [markdown]
# ## Evaluate
# Fresh seeds, none of which was demonstrated, and an interval: 9 of 10 may be 0.6. outputs/first_hour/flow/eval/report.html has the
# clips.

# %%
play = {"eval.episodes": some(50), "eval.videos": 1}
result = polyarm.evaluate(flow["output_dir"], play)
print(f"flow: {result['success_rate']:.2f} of {result['n']}, interval {result['interval']}")

# %% [markdown]
# ## Act
# What a robot's script would hold.

# %%
agent = polyarm.load(flow["output_dir"])
print(agent)
agent.reset(seed=1)
seen = {name: demos.read(name)[0] for name in agent.obs_space.names}
print(dict(zip(agent.action_space.names, np.round(agent.act(seen).astype(float), 3).tolist(), strict=True)))

# %% [markdown]
# ## Mix
# Two policies of the same demonstrations, mixed while they denoise.

# %%
diffusion = polyarm.train(common, policy="diffusion", output_dir=HOME / "diffusion")
scores = {"flow": result}
scores["diffusion"] = polyarm.evaluate(diffusion["output_dir"], play)
scores["both"] = polyarm.evaluate([diffusion["output_dir"], flow["output_dir"]], play, weights=[0.5, 0.5])
plt.figure(figsize=(5, 3))
for i, (name, found) in enumerate(scores.items()):
    low, high = found["interval"]
    plt.plot([i, i], [low, high], color="tab:blue")
    plt.plot(i, found["success_rate"], "o", color="tab:blue", label=name)
plt.xticks(range(len(scores)), list(scores))
plt.ylim(0, 1)
plt.ylabel("success rate, 95 % interval")
plt.savefig(HOME / "scores.png", bbox_inches="tight")

# %% [markdown]
# ## Your own data
# Arrays become a store in a few lines: say what each channel is called, its unit and the rate. Here the recordings are the expert's;
# yours come from a pickle, a folder of pictures or a table (docs/your_data.md). Without a world a policy is judged by its action error
# on held-out episodes, which is no success rate.

# %%
from polyarm.datasets.arrays import numbers, write_store

ends = demos.episode_ends.tolist()
recordings = [
    {"joints": demos.read("joint_pos")[a:b], "cube": demos.read("cube")[a:b], "action": demos.read("action")[a:b]}
    for a, b in zip([0, *ends[:-1]], ends, strict=True)
]
units = lambda space: dict(zip(space.names, space.units, strict=True))  # {channel: unit}
mine = write_store(
    HOME / "mine.zarr",
    recordings,
    streams=[numbers("joints", units(demos.spec.obs["joint_pos"])), numbers("cube", units(demos.spec.obs["cube"]))],
    action=units(demos.spec.action),
    rate_hz=demos.spec.action.rate_hz,
)
own = polyarm.train(common, {"task": "own", "task.demos.path": str(mine)}, policy="flow", output_dir=HOME / "own")
offline = polyarm.evaluate(own["output_dir"])
print(offline["said"])
worst = max(offline["channels"], key=lambda c: c["policy"] / c["repeat"] if c["repeat"] else np.inf)
print(f"{worst['name']}: {worst['policy']:.3g} {worst['unit']}, repeating the last action {worst['repeat']:.3g}")
