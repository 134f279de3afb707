"""Registers of the Feetech STS3215: "STS3215 Memory Table", firmware 3.6 (feetechrc.com), which lerobot's
`motors/feetech/tables.py` agrees with. Signs are magnitudes with a bit for minus. A word's low byte comes first.
"""

from __future__ import annotations

from typing import NamedTuple

MODEL_NUMBER = 777
TICKS = 4096
"""A turn."""

VOLTAGE, SENSOR, HEAT, CURRENT, ANGLE, OVERLOAD = 1, 2, 4, 8, 16, 32
FAULTS = {
    VOLTAGE: "voltage out of range",
    SENSOR: "position sensor faulty",
    HEAT: "overheated",
    CURRENT: "too much current",
    ANGLE: "outside its angle limits",
    OVERLOAD: "overloaded",
}
"""Bits of the register `status` and of the error byte in every reply."""


class Register(NamedTuple):
    address: int
    size: int
    start: int
    """What a motor fresh from the factory says."""
    writable: bool = True
    minus: int = 0
    """The bit that says minus; 0: no number below zero."""

    def decode(self, data: bytes) -> int:
        value = int.from_bytes(data, "little")
        return -(value & ~(1 << self.minus)) if self.minus and value >> self.minus & 1 else value

    def encode(self, value: int) -> bytes:
        return (-value | 1 << self.minus if self.minus and value < 0 else value).to_bytes(self.size, "little")


REGISTERS = {
    "firmware_major": Register(0, 1, 3, False),
    "firmware_minor": Register(1, 1, 6, False),
    "endian": Register(2, 1, 0, False),
    "model": Register(3, 2, MODEL_NUMBER, False),
    "id": Register(5, 1, 1),
    "baud_rate": Register(6, 1, 0),
    "return_delay": Register(7, 1, 0),  # 2 us each
    "response_level": Register(8, 1, 1),  # 0: only pings and reads are answered
    "low": Register(9, 2, 0),
    "high": Register(11, 2, 4095),
    "max_temperature": Register(13, 1, 70),
    "max_voltage": Register(14, 1, 140),  # 0.1 V; the 12 V motor's (the table is of the 7.4 V one: 80)
    "min_voltage": Register(15, 1, 40),
    "max_torque": Register(16, 2, 1000),
    "phase": Register(18, 1, 12),
    "unload_on": Register(19, 1, HEAT | CURRENT | OVERLOAD),
    "alarm_on": Register(20, 1, 47),
    "p": Register(21, 1, 32),
    "d": Register(22, 1, 32),
    "i": Register(23, 1, 0),
    "min_force": Register(24, 2, 16),
    "dead_zone_cw": Register(26, 1, 1),
    "dead_zone_ccw": Register(27, 1, 1),
    "protection_current": Register(28, 2, 500),  # 6.5 mA each
    "resolution": Register(30, 1, 1),
    "homing": Register(31, 2, 0, minus=11),  # position = encoder - homing
    "mode": Register(33, 1, 0),  # 0 position, 1 speed, 2 PWM, 3 steps
    "protective_torque": Register(34, 1, 20),  # percent, once overloaded
    "protection_time": Register(35, 1, 200),  # 10 ms each
    "overload_torque": Register(36, 1, 80),  # percent
    "speed_p": Register(37, 1, 10),
    "current_time": Register(38, 1, 200),
    "speed_i": Register(39, 1, 10),
    "torque": Register(40, 1, 0),  # 128: here is 2048 from now on
    "acceleration": Register(41, 1, 0),  # 100 ticks/s^2 each, 0: no bound
    "goal": Register(42, 2, 0, minus=15),
    "goal_time": Register(44, 2, 0),
    "goal_speed": Register(46, 2, 0, minus=15),  # ticks/s, 0: no bound
    "torque_limit": Register(48, 2, 1000),
    "lock": Register(55, 1, 0),  # 1: what is written below 40 is forgotten without power
    "position": Register(56, 2, 2048, False, minus=15),
    "speed": Register(58, 2, 0, False, minus=15),
    "load": Register(60, 2, 0, False, minus=10),
    "voltage": Register(62, 1, 120, False),  # 0.1 V
    "temperature": Register(63, 1, 31, False),
    "async_write": Register(64, 1, 0, False),
    "status": Register(65, 1, 0, False),
    "moving": Register(66, 1, 0, False),
    "current": Register(69, 2, 0, False, minus=15),  # 6.5 mA each
    "goal_now": Register(71, 2, 0, False, minus=15),
    "moving_speed": Register(80, 1, 1),
    "d_time": Register(81, 1, 0),
    "speed_unit": Register(82, 1, 1),
    "h_time": Register(83, 1, 0),
    "max_speed": Register(84, 1, 80),
    "max_acceleration": Register(85, 1, 0),
    "acceleration_factor": Register(86, 1, 1),
}
SRAM, SIZE = 40, 87
"""The first address that no power keeps, and the length of the table."""
BLOCK, BLOCK_SIZE = 56, 15
"""From `position` to `current` in one read: status and temperature then cost no packet of their own."""
PART = {
    name: (r, slice(r.address - BLOCK, r.address - BLOCK + r.size))
    for name, r in REGISTERS.items()
    if BLOCK <= r.address < BLOCK + BLOCK_SIZE
}


def part(block: bytes, name: str) -> int:
    """A register's value out of a read of the block."""
    register, where = PART[name]
    return register.decode(block[where])


def described(status: int) -> str:
    """ "overheated, overloaded"; "" for 0."""
    return ", ".join(what for bit, what in FAULTS.items() if status & bit) or ("unknown fault" if status else "")
