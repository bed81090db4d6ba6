"""XXH64 of some values, by the reference implementation (python-xxhash 3, seed 0)."""

from __future__ import annotations

STRINGS = {
    b"": 0xEF46DB3751D8E999,
    b"a": 0xD24EC4F1A98C6E5B,
    b"abc": 0x44BC2CF5AD770999,
    b"store": 0xDEBFA3A4D9E2B00A,
    b"grocery": 0xC59F19C2C8C696A2,
    "Müsli".encode(): 0xF31911FFAA913A1B,
    b"Kroger store 42": 0x0E72DC756A178B5F,
    b"the quick brown fox jumps over": 0xD5F8A61C81CFB084,
    bytes(range(32)): 0xCBF59C5116FF32B4,
    b"the quick brown fox jumps over the lazy dog, twice or thrice a day": 0x36E3F29692999B75,
}


INTEGERS = {
    0: 0x34C96ACDCADB1BBB,
    1: 0x9F29CB17A2A49995,
    -1: 0x85D136ADB773C6C9,
    2**63 - 1: 0xFF70CC60366E770C,
    -(2**63): 0x3F425EACF01544E0,
    123456789: 0xCB7C2941B198004D,
}
