"""How a joint's angle stands to its motor's ticks, for one arm: `ticks = zero + sign * scale * angle`.

A file of it:

    joints:
      shoulder_pan: {id: 1, unit: rad, zero: 2048, sign: 1, scale: 651.8986, homing: 0, range: [797, 3299]}
      gripper: {id: 6, unit: m, zero: 2048, sign: 1, scale: 24446.2, homing: 0, range: [2048, 2830]}

`range` and `homing` stand in the motors too, so that a file that belongs to another arm is noticed before one moves.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from polyarm.real_robot.arm import ArmSpec
from polyarm.real_robot.so101 import GRIPPER, SPEC
from polyarm.real_robot.sts_table import TICKS
from polyarm.spec import UserError

Ticks = tuple[int, ...]
Number = int | float
JAW_RAD = 1.2
"""How far the twin's gripper motor turns from closed to open."""


@dataclass(frozen=True)
class Joint:
    id: int
    unit: str
    zero: int
    """Ticks at 0 rad or 0 m."""
    sign: int
    scale: float
    """Ticks a rad or m."""
    homing: int
    """What the motor takes off its encoder."""
    range: tuple[int, int]
    """Ticks that the motor accepts, both ends included."""

    def ticks(self, angle: Number) -> float:
        return self.zero + self.sign * self.scale * angle

    def angle(self, ticks: Number) -> float:
        return (ticks - self.zero) * self.sign / self.scale


@dataclass(frozen=True)
class Calibration:
    joints: Mapping[str, Joint]

    def __post_init__(self) -> None:
        for name, joint in self.joints.items():
            if fault := _fault(joint):
                raise UserError(f"calibration of {name}: {fault}")
        ids = [joint.id for joint in self.joints.values()]
        for name, joint in self.joints.items():
            if ids.count(joint.id) > 1:
                raise UserError(f"calibration of {name}: id {joint.id} stands twice; give every joint its own motor's")

    @property
    def hash(self) -> str:
        """Sixteen hex digits; equal only for equal calibrations."""
        return hashlib.sha256(json.dumps(self.data(), sort_keys=True).encode()).hexdigest()[:16]

    def data(self) -> dict[str, Any]:
        plain = lambda joint: asdict(joint) | {"range": list(joint.range)}
        return {"joints": {name: plain(joint) for name, joint in self.joints.items()}}

    def require(self, spec: ArmSpec, where: str = "the calibration") -> None:
        """Refuse unless it is one for this kind of arm."""
        if tuple(self.joints) != spec.joints:
            raise UserError(
                f"{where} has joints {', '.join(self.joints) or 'none'}, {spec.model} has {', '.join(spec.joints)} in this order: "
                f"give the file of a {spec.model}"
            )
        for (name, joint), unit in zip(self.joints.items(), spec.units, strict=True):
            if joint.unit != unit:
                raise UserError(f"{where} counts {name} in {joint.unit}, {spec.model} in {unit}: convert its scale")

    def save(self, path: Path | str) -> None:
        """Beside, then in its place."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        with open(new, "w") as file:
            yaml.safe_dump(self.data(), file, sort_keys=False, default_flow_style=None, width=120)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)


def _fault(joint: Joint) -> str:
    """What cannot be about it, and the remedy."""
    low, high = joint.range
    if joint.unit not in ("rad", "m"):
        return f"unit {joint.unit!r} is neither rad nor m"
    if joint.sign not in (1, -1):
        return f"sign {joint.sign} is neither 1 nor -1"
    if not (math.isfinite(joint.scale) and joint.scale > 0):
        return f"scale {joint.scale} is no number of ticks above 0; a turn the other way is sign -1"
    if not 0 <= joint.id <= 253:
        return f"id {joint.id} is not from 0 to 253"
    if not abs(joint.homing) < 2048:
        return f"homing {joint.homing} is not from -2047 to 2047"
    if not 0 <= low < high < TICKS:
        return f"range {[low, high]} is empty or not within 0 to {TICKS - 1}; give the lower end first"
    return ""


def load(path: Path | str, spec: ArmSpec = SPEC) -> Calibration:
    """From a file of `save`, refused unless it is for `spec`."""
    try:
        data = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(
            f"calibration {path} cannot be read ({error.strerror}): make one with `polyarm calibrate`"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"calibration {path} is no yaml ({' '.join(str(error).split())}): make it anew") from None
    joints = data.get("joints") if isinstance(data, dict) else None
    if not isinstance(joints, dict):
        raise UserError(f"calibration {path} has no `joints`: make it anew with `polyarm calibrate`")
    found = Calibration({name: _joint(row, f"{name} in {path}") for name, row in joints.items()})
    found.require(spec, str(path))
    return found


def _joint(row: Any, where: str) -> Joint:
    want = {f.name for f in fields(Joint)}
    if not isinstance(row, dict) or set(row) != want:
        raise UserError(f"calibration of {where} must hold exactly {', '.join(sorted(want))}: make it anew")
    whole = lambda x: isinstance(x, int) and not isinstance(x, bool)
    for key in ("id", "zero", "sign", "homing"):
        if not whole(row[key]):
            raise UserError(f"calibration of {where}: {key} {row[key]!r} is no whole number")
    if not (isinstance(row["scale"], int | float) and isinstance(row["range"], list) and len(row["range"]) == 2):
        raise UserError(f"calibration of {where}: scale is a number and range [low, high]")
    if not all(map(whole, row["range"])):
        raise UserError(f"calibration of {where}: range {row['range']} is not of two whole numbers of ticks")
    return Joint(**row | {"range": tuple(row["range"]), "scale": float(row["scale"])})


def so101(signs: Ticks = (1,) * 6, zeros: Ticks = (2048,) * 6, homings: Ticks = (0,) * 6) -> Calibration:
    """Of an arm whose motors stand as given and whose ranges are the model's limits: the twin's. A real one is measured."""
    joints = {}
    for i, name in enumerate(SPEC.joints):
        scale = JAW_RAD / SPEC.high[i] if name == GRIPPER else 1.0
        bare = Joint(
            i + 1,
            SPEC.units[i],
            zeros[i],
            signs[i],
            scale * TICKS / math.tau,
            homings[i],
            (0, TICKS - 1),
        )
        ends = sorted((bare.ticks(SPEC.low[i]), bare.ticks(SPEC.high[i])))
        joints[name] = Joint(**asdict(bare) | {"range": (math.ceil(ends[0]), math.floor(ends[1]))})
    return Calibration(joints)
