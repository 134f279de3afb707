"""An SO-101-class arm without meshes: five joints, two coupled finger slides, position actuators, gravity compensation.

Frames: the base's z is up, x is forward; the tip lies between the finger pads, its z along the tool, its x along the
slides. Visible geoms (group 2) weigh nothing; the hull (group 3, hidden) carries the mass and collides with nothing: it
is there for distance queries of a safety layer. Only pads, props and table collide.
"""

from __future__ import annotations

from collections.abc import Iterable

import mujoco
import numpy as np
from jaxtyping import Float

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
LIMITS_DEG = ((-110, 110), (-100, 100), (-97, 97), (-95, 110), (-160, 160))
LIMITS_RAD = np.deg2rad(np.array(LIMITS_DEG, float))
OPENING_M = (0.0, 0.032)
"""Range of the commanded finger opening: each pad's distance from the tool axis."""

TABLE_RGB = (0.86, 0.83, 0.78)
MARK = np.array([0.80, 0.765, 0.71]) / TABLE_RGB
"""The lines on the table, as a share of its colour."""

LIFT_HEIGHT_M, UPPER_M, FORE_M, TOOL_M, WRIST_M = 0.12, 0.116, 0.135, 0.10, 0.03
PAN_HEIGHT_M, FINGER_M = 0.06, TOOL_M - WRIST_M - 0.004


def top_down(x: float, y: float, z: float, yaw: float = 0.0) -> Float[np.ndarray, "5"]:
    """Joints (rad) that put the tip at `x y z` (m, base frame) with the tool straight down. Out of reach: the nearest bend."""
    radius, height = np.hypot(x, y), z + TOOL_M - LIFT_HEIGHT_M
    reach = min(np.hypot(radius, height), UPPER_M + FORE_M - 1e-4)
    shoulder = np.arccos((UPPER_M**2 + reach**2 - FORE_M**2) / (2 * UPPER_M * reach))
    bend = np.pi - np.arccos((UPPER_M**2 + FORE_M**2 - reach**2) / (2 * UPPER_M * FORE_M))
    lift = np.pi / 2 - np.arctan2(height, radius) - shoulder
    pan = np.arctan2(y, x)
    return np.array([pan, lift, bend - np.pi / 2, np.pi - lift - bend, wrap(pan - yaw)])


def wrap(angle: float) -> float:
    """`angle` in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def tip_step(
    model: mujoco.MjModel, data: mujoco.MjData, pos: Float[np.ndarray, "3"], yaw: float, damping: float = 0.01
) -> Float[np.ndarray, "5"]:
    """Joint step (rad) that brings the tip to `pos` (m) with the tool down and its x axis at `yaw`, by damped least squares.

    A metre counts as ten radians of rotation. Reads the kinematics in `data`, which must be current.
    """
    move, turn = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    site = model.site("tip").id
    mujoco.mj_jacSite(model, data, move, turn, site)
    x_axis, z_axis = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
    want = np.stack([x_axis, np.cross(z_axis, x_axis), z_axis])
    have = data.site_xmat[site].reshape(3, 3).T
    error = np.concatenate([pos - data.site_xpos[site], 0.1 * 0.5 * np.cross(have, want).sum(0)])
    jac = np.concatenate([move[:, :5], 0.1 * turn[:, :5]])
    return jac.T @ np.linalg.solve(jac @ jac.T + damping**2 * np.eye(6), error)


def front_camera(orbit_deg: float) -> str:
    """The pose of the camera `front`, carried round the vertical through the middle of the workspace by an angle that counts
    from above against the clock."""
    c, s = np.cos(np.deg2rad(orbit_deg)), np.sin(np.deg2rad(orbit_deg))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    middle = np.array([0.18, 0, 0])
    pos = middle + turn @ (np.array([0.75, 0, 0.42]) - middle)
    axes = np.concatenate([turn @ [0, 1, 0], turn @ [-0.43, 0, 0.90]])
    words = lambda x: " ".join(f"{v:.9g}" for v in x)
    return f'pos="{words(pos)}" xyaxes="{words(axes)}"'


def scene(props: str, timestep_s: float, front_orbit_deg: float = 0.0, table_rgb: tuple[float, ...] = TABLE_RGB) -> str:
    """MJCF of a table, the arm, lights, the cameras `front` and `wrist`, and the bodies in `props`.

    Without the two noslip iterations (a sixth of the time) soft friction lets a held cube creep by 1.5 mm/s.
    """
    return f"""
<mujoco model="so101">
  <compiler angle="degree" autolimits="true"/>
  <option timestep="{timestep_s}" integrator="implicitfast" cone="elliptic" impratio="1" noslip_iterations="2"/>
  <visual>
    <global offwidth="1280" offheight="960"/>
    <headlight ambient=".42 .42 .42" diffuse=".28 .28 .28" specular="0 0 0"/>
    <quality shadowsize="2048" numslices="16" numstacks="8"/>
    <map znear="0.01" zfar="20" shadowclip="0.7"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1=".80 .86 .92" rgb2=".58 .66 .76" width="64" height="384"/>
    <texture name="table" type="2d" builtin="flat" rgb1="{_rgb(table_rgb)}" width="100" height="100" mark="edge" markrgb="{_rgb(np.multiply(table_rgb, MARK))}"/>
    <material name="table" texture="table" texrepeat="50 50" texuniform="false" specular="0"/>
    <material name="print" rgba=".98 .69 .16 1" specular=".2" shininess=".3"/>
    <material name="servo" rgba=".17 .18 .21 1" specular=".3" shininess=".4"/>
    <material name="rubber" rgba=".28 .30 .34 1" specular="0"/>
  </asset>
  <default>
    <joint damping="0.3" armature="0.02" frictionloss="0.02"/>
    <geom condim="3" friction="0.8 0.01 0.001"/>
    <default class="look"><geom type="box" group="2" contype="0" conaffinity="0" mass="0" material="print"/></default>
    <default class="hull"><geom type="capsule" group="3" contype="0" conaffinity="0" density="600"/></default>
    <default class="pad">
      <geom type="box" size="0.004 0.009 0.016" friction="1.5 0.05 0.001" condim="4" mass="0.012" material="rubber"/>
    </default>
    <default class="finger"><joint type="slide" range="0.002 0.032" damping="3" armature="0.05" frictionloss="0"/></default>
    <position kp="25" kv="1.5" forcerange="-6 6"/>
  </default>
  <worldbody>
    <light directional="true" pos="0.3 -0.5 1" dir="-0.15 0.42 -0.9" diffuse=".5 .5 .48" specular=".2 .2 .2" castshadow="true"/>
    <geom name="table" type="plane" size="2 2 1" material="table"/>
    <camera name="front" {front_camera(front_orbit_deg)} fovy="31"/>
    {_arm()}
    {props}
  </worldbody>
  <tendon><fixed name="grip"><joint joint="left_finger" coef="0.5"/><joint joint="right_finger" coef="0.5"/></fixed></tendon>
  <equality><joint joint1="left_finger" joint2="right_finger" polycoef="0 1 0 0 0"/></equality>
  <actuator>
    {"".join(f'<position name="{n}" joint="{n}" inheritrange="1"/>' for n in JOINTS)}
    <position name="gripper" tendon="grip" kp="150" kv="20" forcerange="-3 3" ctrlrange="{OPENING_M[0]} {OPENING_M[1]}"/>
  </actuator>
</mujoco>"""


def _rgb(colour: Iterable[float]) -> str:
    return " ".join(f"{x:.3g}" for x in colour)


def _joint(name: str, axis: str) -> str:
    low, high = LIMITS_DEG[JOINTS.index(name)]
    return f'<joint name="{name}" axis="{axis}" range="{low} {high}"/>'


def _finger(name: str, side: int) -> str:
    return f"""
    <body name="{name}" pos="0 0 {FINGER_M}" gravcomp="1">
      <joint name="{name}" class="finger" axis="{side} 0 0"/>
      <geom name="{name}_pad" class="pad" pos="{side * 0.004} 0 0"/>
      <geom name="{name}_hull" class="hull" type="box" size="0.004 0.007 0.014" pos="{side * 0.004} 0 -0.03" mass="0.01"/>
      <geom class="look" size="0.004 0.0075 0.022" pos="{side * 0.0125} 0 -0.015"/>
      <geom class="look" size="0.008 0.0075 0.004" pos="{side * 0.0085} 0 -0.036"/>
    </body>"""


def _arm() -> str:
    motor = 'class="look" type="cylinder" zaxis="0 1 0" material="servo"'
    return f"""
    <body name="base">
      <geom class="look" size="0.055 0.05 0.005" pos="-0.01 0 0.005" material="servo"/>
      <geom class="look" size="0.04 0.033 0.028" pos="-0.005 0 0.032"/>
      <geom name="base_hull" class="hull" type="box" size="0.04 0.035 0.03" pos="0 0 0.03"/>
      <body name="shoulder" pos="0 0 {PAN_HEIGHT_M}" gravcomp="1">
        {_joint("shoulder_pan", "0 0 1")}
        <geom name="shoulder_hull" class="hull" fromto="0 0 0 0 0 0.06" size="0.022"/>
        <geom class="look" type="cylinder" size="0.027 0.006" pos="0 0 0.006" material="servo"/>
        <geom class="look" size="0.016 0.02 0.026" pos="0 0 0.034"/>
        <body name="upper" pos="0 0 {LIFT_HEIGHT_M - PAN_HEIGHT_M}" gravcomp="1">
          {_joint("shoulder_lift", "0 1 0")}
          <geom name="upper_hull" class="hull" fromto="0 0 0 0 0 {UPPER_M}" size="0.014"/>
          <geom {motor} size="0.019 0.025"/>
          <geom class="look" size="0.013 0.017 {UPPER_M / 2 - 0.012}" pos="0 0 {UPPER_M / 2}"/>
          <body name="fore" pos="0 0 {UPPER_M}" euler="0 90 0" gravcomp="1">
            {_joint("elbow_flex", "0 1 0")}
            <geom name="fore_hull" class="hull" fromto="0 0 0 0 0 {FORE_M}" size="0.012"/>
            <geom {motor} size="0.018 0.023"/>
            <geom class="look" size="0.011 0.015 {FORE_M / 2 - 0.012}" pos="0 0 {FORE_M / 2}"/>
            <body name="wrist" pos="0 0 {FORE_M}" gravcomp="1">
              {_joint("wrist_flex", "0 1 0")}
              <geom name="wrist_hull" class="hull" fromto="0 0 0 0 0 {WRIST_M}" size="0.012"/>
              <geom {motor} size="0.016 0.021"/>
              <body name="hand" pos="0 0 {WRIST_M}" gravcomp="1">
                {_joint("wrist_roll", "0 0 1")}
                <geom name="hand_hull" class="hull" type="box" size="0.036 0.012 0.012" pos="0 0 0.022"/>
                <geom class="look" type="cylinder" size="0.013 0.012" pos="0 0 0.002" material="servo"/>
                <geom class="look" size="0.038 0.014 0.009" pos="0 0 0.021"/>
                <geom class="look" size="0.007 0.022 0.004" pos="0 -0.028 0.014"/>
                <geom class="look" size="0.009 0.007 0.009" pos="0 -0.052 0.012" material="servo"/>
                <camera name="wrist" pos="0 -0.052 0.022" xyaxes="1 0 0 0 -0.86 0.51" fovy="75"/>
                <site name="tip" pos="0 0 {TOOL_M - WRIST_M}" size="0.002" group="4"/>
                {_finger("left_finger", 1)}
                {_finger("right_finger", -1)}
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>"""
