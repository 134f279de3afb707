"""Worlds. Each is a `gymnasium` environment that keeps the contract of `polyarm.sim.world`.

A new task is one file and one line here; tasks of other packages come through gymnasium's own entry points.
Entry points are strings, so that importing this package loads no simulator.
"""

from gymnasium import register

register("polyarm/PickPlace-v0", entry_point="polyarm.sim.mujoco.pick_place:PickPlace", disable_env_checker=True)
register("polyarm/PushT-v0", entry_point="polyarm.sim.external.pusht:PushT", disable_env_checker=True)
register("polyarm/Recall-v0", entry_point="polyarm.sim.mujoco.recall:Recall", disable_env_checker=True)
register("polyarm/Kitchen-v0", entry_point="polyarm.sim.external.kitchen:Kitchen", disable_env_checker=True)
register("polyarm/ManiSkill-v0", entry_point="polyarm.sim.sapien.maniskill:ManiSkill", disable_env_checker=True)
