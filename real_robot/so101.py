"""The SO-101: five joints in rad and a gripper in m of opening, in the order of its motors from the base up."""

from __future__ import annotations

from polyarm.real_robot.arm import ArmSpec
from polyarm.sim.mujoco import so101

GRIPPER = "gripper"
_low, _high = zip(*so101.LIMITS_RAD.tolist(), so101.OPENING_M, strict=True)

SPEC = ArmSpec(
    model="so101",
    joints=(*so101.JOINTS, GRIPPER),
    units=("rad",) * 5 + ("m",),
    low=_low,
    high=_high,
    velocity=(3.0,) * 5 + (0.3,),
    acceleration=(25.0,) * 5 + (4.0,),
    rate_hz=100.0,
)
"""Limits are the model's. A motor turns at most 4.7 rad/s without load (STS3215, 12 V: 45 rpm), of which it is asked two thirds."""
