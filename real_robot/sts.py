"""The Feetech STS bus: requests and replies as the "FT-SCS communication protocol manual" and scservo_sdk 1.0.0 have them.

    request  FF FF id length instruction parameter... checksum
    reply    FF FF id length error       parameter... checksum        length counts what follows it

Replies carry no number, so one that is late looks like that of the next request. After every exchange that failed the bus
therefore waits for silence, and it refuses a reply that more bytes follow. One that still slips in is the loop's to catch: its
joints have jumped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import count

from polyarm.real_robot.arm import ReadFailed
from polyarm.real_robot.sts_table import BLOCK, BLOCK_SIZE, REGISTERS, SRAM
from polyarm.real_robot.wire import BAUD, Wire

PING, READ, WRITE, REG_WRITE, ACTION, SYNC_READ, SYNC_WRITE = 1, 2, 3, 4, 5, 0x82, 0x83
ALL = 0xFE
HEAD = b"\xff\xff"
AROUND = 6
"""Bytes of a packet that are no parameters."""
PATIENCE_S, LEAST = 0.1, 3
"""How long, and how often at least, a single register is asked for again before its motor counts as silent."""


def packet(motor: int, word: int, parameters: bytes = b"") -> bytes:
    """`word`: the instruction of a request, the error byte of a reply."""
    body = bytes([motor, len(parameters) + 2, word]) + parameters
    return HEAD + body + bytes([checksum(body)])


def checksum(body: bytes) -> int:
    return ~sum(body) & 0xFF


class Bus:
    """Motors `ids` on a wire. What takes `motor` is asked again until it succeeds or PATIENCE_S is over; the two of every
    tick, `read_block` and `write_goals`, are not.

    `slack_s`: how long a reply may take beyond its bytes' own time: USB, and the motors' return delay.
    """

    def __init__(self, wire: Wire, ids: Sequence[int], slack_s: float = 0.005) -> None:
        self.wire, self.ids, self.slack_s = wire, tuple(ids), slack_s
        self._block = packet(ALL, SYNC_READ, bytes([BLOCK, BLOCK_SIZE, *self.ids]))
        self._replies = [(i, BLOCK_SIZE) for i in self.ids]
        self._owed = False

    def read_block(self) -> list[tuple[int, bytes]]:
        """(error byte, registers from BLOCK on) of each motor, in one exchange."""
        return self._exchange(self._block, self._replies)

    def write_goals(self, ticks: Sequence[int]) -> None:
        """One packet, which nobody answers."""
        self._write_all("goal", ticks)

    def write_torque(self, on: bool) -> None:
        """To all motors in one packet, which nobody answers."""
        self._write_all("torque", [int(on)] * len(self.ids))

    def _write_all(self, name: str, values: Sequence[int]) -> None:
        register = REGISTERS[name]
        each = b"".join(bytes([i]) + register.encode(x) for i, x in zip(self.ids, values, strict=True))
        self.wire.send(packet(ALL, SYNC_WRITE, bytes([register.address, register.size]) + each))

    def ping(self, motor: int, patience_s: float = PATIENCE_S) -> bool:
        """Whether it answers."""
        try:
            self._ask(motor, PING, b"", 0, patience_s)
        except ReadFailed:
            return False
        return True

    def read(self, motor: int, name: str) -> int:
        register = REGISTERS[name]
        return register.decode(self._ask(motor, READ, bytes([register.address, register.size]), register.size))

    def kept(self, motor: int) -> dict[str, int]:
        """All that the motor keeps without power, in one exchange."""
        data = self._ask(motor, READ, bytes([0, SRAM]), SRAM)
        return {
            name: r.decode(data[r.address : r.address + r.size]) for name, r in REGISTERS.items() if r.address < SRAM
        }

    def write(self, motor: int, name: str, value: int) -> None:
        """And wait for the motor to say that it has it. Written twice is written once."""
        register = REGISTERS[name]
        self._ask(motor, WRITE, bytes([register.address]) + register.encode(value), 0)

    def _ask(self, motor: int, word: int, parameters: bytes, size: int, patience_s: float = PATIENCE_S) -> bytes:
        request, end_s = packet(motor, word, parameters), time.monotonic() + patience_s
        for tried in count(1):
            try:
                return self._exchange(request, [(motor, size)])[0][1]
            except ReadFailed:
                if tried >= LEAST and time.monotonic() > end_s:
                    raise
        raise AssertionError("count ends")

    def _exchange(self, request: bytes, replies: Sequence[tuple[int, int]]) -> list[tuple[int, bytes]]:
        """(error byte, parameters) of the replies, which are of (motor, parameters) in this order."""
        if self._owed and not self.wire.quiet():
            raise ReadFailed(f"{self.wire.where} does not fall silent")
        self._owed = True
        self.wire.discard()
        self.wire.send(request)
        size = sum(n + AROUND for _, n in replies)
        end_s = time.monotonic() + 10 * (len(request) + size) / BAUD + self.slack_s
        got = bytearray()
        while len(got) < size:
            if not (data := self.wire.receive(end_s)):
                break
            got += data
        found = _parse(bytes(got), replies)
        if self.wire.waiting() or len(got) > size:
            raise ReadFailed("more bytes came than were asked for: one of the replies is late")
        self._owed = False
        return found


def _parse(got: bytes, replies: Sequence[tuple[int, int]]) -> list[tuple[int, bytes]]:
    if len(got) < sum(n + AROUND for _, n in replies):
        silent = [str(motor) for motor, _ in replies if HEAD + bytes([motor]) not in got]
        raise ReadFailed(f"no reply of motor {', '.join(silent)}" if silent else "a reply is cut off")
    found, k = [], 0
    for motor, n in replies:
        one = got[k : k + n + AROUND]
        k += n + AROUND
        if one[:4] != HEAD + bytes([motor, n + 2]) or checksum(one[2:-1]) != one[-1]:
            raise ReadFailed(f"the reply of motor {motor} is damaged")
        found.append((one[4], one[5:-1]))
    return found
