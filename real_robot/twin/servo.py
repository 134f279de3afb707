"""One emulated STS3215: its registers, what may be written to them, and how it protects itself.

Facts are of the "STS3215 Memory Table" (firmware 3.6) and the protections of data sheet C018; what neither says is marked
"assumed", and is what is hardest on a host.
"""

from __future__ import annotations

from polyarm.real_robot.sts_table import CURRENT, HEAT, OVERLOAD, REGISTERS, SIZE, SRAM, VOLTAGE

WRITABLE = frozenset(a for r in REGISTERS.values() if r.writable for a in range(r.address, r.address + r.size))
HERE_IS_MIDDLE, MIDDLE = 128, 2048
STALL_COUNT = 415
"""Current at stall, 2.7 A (C018), in 6.5 mA."""


class Servo:
    """`encoder`: where the shaft is, in ticks, whatever homing says. `power`: the torque it gives, 0 to 1."""

    def __init__(self, motor: int, homing: int, low: int, high: int) -> None:
        self.kept = bytearray(SIZE)
        for register in REGISTERS.values():
            self.kept[register.address : register.address + register.size] = register.encode(register.start)
        self.memory = bytearray(self.kept)
        for name, value in (("id", motor), ("homing", homing), ("low", low), ("high", high)):
            self.set(name, value)
        self.kept[:SRAM] = self.memory[:SRAM]
        self.encoder, self.forced, self.present = MIDDLE, 0, True
        self.volts_off = 0
        self._over_s = self._current_s = 0.0
        self.start()

    def start(self) -> None:
        """As after power on: what was written with the lock on is gone, torque is off and its limit the table's."""
        self.memory[:] = self.kept
        self.set("torque_limit", self.get("max_torque"))
        self.protected, self.goal_given = 0, False
        self.deferred: tuple[int, bytes] | None = None

    def get(self, name: str) -> int:
        register = REGISTERS[name]
        return register.decode(bytes(self.memory[register.address : register.address + register.size]))

    def set(self, name: str, value: int) -> None:
        register = REGISTERS[name]
        self.memory[register.address : register.address + register.size] = register.encode(value)

    def read(self, address: int, size: int) -> bytes | None:
        """Assumed: a motor that is asked for what it does not have says nothing."""
        return bytes(self.memory[address : address + size]) if 0 < size <= SIZE - address else None

    def write(self, address: int, data: bytes) -> bool:
        """Assumed: bytes that are read only or not there are passed over. Whether a goal was among them."""
        for at, byte in enumerate(data, address):
            if at in WRITABLE:
                self.memory[at] = byte
                if at < SRAM and not self.memory[REGISTERS["lock"].address]:
                    self.kept[at] = byte
        touched = lambda name: (
            address < REGISTERS[name].address + REGISTERS[name].size and (REGISTERS[name].address < address + len(data))
        )
        if touched("torque"):
            self._switch()
        if touched("goal"):
            self._aim()
        return touched("goal")

    def _switch(self) -> None:
        if self.get("torque") == HERE_IS_MIDDLE:
            self.set("torque", 0)
            self.set("homing", max(-2047, min(2047, self.encoder - MIDDLE)))
        elif self.get("torque") and not self.goal_given:
            # assumed: with no goal since power on it stays; with an old one it goes there, which hosts must see to
            self.set("goal", self.position)
        if not self.get("torque"):
            self.protected = 0

    def _aim(self) -> None:
        """A goal is cut to the range, takes an overload back (C018), and switches torque on: not in the table, but owners
        have measured it."""
        low, high = self.get("low"), self.get("high")
        if low < high:  # both 0: no limits
            self.set("goal", min(max(self.get("goal"), low), high))
        self.goal_given = True
        self.protected &= ~OVERLOAD
        self._over_s = 0.0
        if not self.protected & self.get("unload_on"):
            self.set("torque", 1)

    @property
    def position(self) -> int:
        return self.encoder - self.get("homing")

    @property
    def status(self) -> int:
        return self.protected | self.forced

    @property
    def power(self) -> float:
        """Nothing while hot or after too much current, the protective torque after an overload (C018)."""
        if self.get("torque") != 1:
            return 0.0
        share = min(self.get("torque_limit"), self.get("max_torque")) / 1000
        return min(share, self.get("protective_torque") / 100) if self.protected & OVERLOAD else share

    @property
    def goal(self) -> int:
        """In ticks of the encoder."""
        return self.get("goal") + self.get("homing")

    def feel(self, encoder: int, speed: int, load: float, temperature_c: float, volts: float, dt_s: float) -> None:
        """What the motor measures now, and what it does about it. `load`: share of stall, signed."""
        self.encoder = encoder
        self.set("position", self.position)
        self.set("speed", speed)
        self.set("load", max(-1000, min(1000, round(1000 * load))))
        self.set("temperature", max(0, min(255, int(temperature_c))))
        self.set("voltage", max(0, min(255, round(10 * volts))))
        self.set("current", round(load * STALL_COUNT))
        self.set("moving", int(abs(speed) > self.get("moving_speed")))
        self.set("goal_now", self.get("goal"))
        self._protect(abs(load), dt_s)
        self.set("status", self.status)

    def _protect(self, load: float, dt_s: float) -> None:
        hot = self.get("temperature") > self.get("max_temperature")
        volts_wrong = not self.get("min_voltage") <= self.get("voltage") <= self.get("max_voltage")
        self.protected = self.protected & (OVERLOAD | CURRENT) | HEAT * hot | VOLTAGE * volts_wrong
        self._over_s = self._over_s + dt_s if load > self.get("overload_torque") / 100 else 0.0
        if self._over_s > self.get("protection_time") / 100:
            self.protected |= OVERLOAD
        self._current_s = self._current_s + dt_s if load * STALL_COUNT > self.get("protection_current") else 0.0
        if self._current_s > self.get("current_time") / 100:
            self.protected |= CURRENT
        if self.protected & self.get("unload_on") & (HEAT | CURRENT):
            self.set("torque", 0)  # needs to be switched on again
