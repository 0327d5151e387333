#!/usr/bin/env python3
"""Test vectors for docs/express.md, made without any of meshd's code.

    python3 -m pip install cryptography
    python3 tests/vectors/express.py > tests/vectors/express.json

Prints the same bytes every time: whatever is random in life is fixed here. `src/express/vectors.rs` checks meshd against them.
"""

import hashlib
import ipaddress
import json
import struct

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

LABEL = b"meshd express 1"
EXPRESS = 1 << 31
COUNTERS = 1 << 36
KIND, PORT, UDP = 9, 0x6D64, 17


def pattern(length, start):
    """Bytes that differ from their neighbours."""
    return bytes((start + 7 * at) & 0xFF for at in range(length))


class Side:
    def __init__(self, private, index23, number):
        self.private = private
        key = X25519PrivateKey.from_private_bytes(private).public_key()
        self.public = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.index = EXPRESS | index23 << 8 | number
        self.contribution = b""
        host = hashlib.blake2s(b"meshd agent" + self.public).digest()[:8]
        self.address = bytes.fromhex("fd6d657368640000") + host

    def show(self):
        return {
            "private_key": self.private.hex(),
            "public_key": self.public.hex(),
            "agent_address": str(ipaddress.IPv6Address(self.address)),
            "index": self.index,
            "contribution": self.contribution.hex(),
        }


def derive(asker, answerer):
    secret = asker.contribution + answerer.contribution
    info = asker.public + answerer.public + struct.pack("<II", asker.index, answerer.index)
    extract = hmac.HMAC(LABEL, hashes.SHA256())
    extract.update(secret)
    okm = HKDF(algorithm=hashes.SHA256(), length=64, salt=LABEL, info=info).derive(secret)
    return secret, info, extract.finalize(), okm


def header(index, counter):
    return struct.pack("<B3xIQ", 4, index, counter)


def seal(key, index, counter, plain):
    head = header(index, counter)
    return head + AESGCM(key).encrypt(struct.pack("<4xQ", counter), plain, head)


def padded(packet, mtu=1420):
    """What is sealed for an IP packet."""
    length = min(-(-len(packet) // 16) * 16, max(mtu, len(packet)))
    return packet.ljust(length, b"\0")


def body(op, reason, first, rest=b"", version=1):
    return struct.pack("<BBBBI", version, op, reason, 0, first) + rest


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF) or 0xFFFF


def agent_packet(sender, receiver, content):
    """The IPv6 packet that takes a body through the tunnel."""
    message = struct.pack(">BBHI", 1, KIND, len(content), 0) + content
    length = 8 + len(message)
    udp = struct.pack(">HHHH", PORT, PORT, length, 0) + message
    pseudo = sender.address + receiver.address + struct.pack(">II", length, UDP)
    filled = pseudo + udp + b"\0" * (len(udp) % 2)
    udp = udp[:6] + struct.pack(">H", checksum(filled)) + udp[8:]
    return struct.pack(">IHBB", 6 << 28, length, UDP, 1) + sender.address + receiver.address + udp


def flipped(message, byte, bit=0):
    changed = bytearray(message)
    changed[byte] ^= 1 << bit
    return bytes(changed)


asker, answerer = sorted(
    [Side(pattern(32, 1), 0x123456, 1), Side(pattern(32, 2), 0x7EDCBA, 255)], key=lambda side: side.public
)
asker.contribution, answerer.contribution = pattern(32, 0x40), pattern(32, 0x90)
secret, info, prk, okm = derive(asker, answerer)
keys = {"asker_to_answerer": okm[:32], "answerer_to_asker": okm[32:]}
receivers = {"asker_to_answerer": answerer, "answerer_to_asker": asker}
forth, back = keys

ask = body(1, 0, asker.index, asker.contribution)
agree = body(2, 0, asker.index, struct.pack("<I", answerer.index) + answerer.contribution)
bodies = [
    ("ask", "Ask", ask),
    ("agree", "Agree", agree),
    ("decline", "Decline: off", body(3, 1, asker.index)),
    ("decline", "Decline: no AES hardware", body(3, 2, asker.index)),
    ("decline", "Decline: another version", body(3, 3, asker.index)),
    ("stop", "Stop by the answerer: off", body(4, 1, answerer.index)),
    ("stop", "Stop by the asker: doubt", body(4, 4, asker.index)),
    ("opened", "Opened by the answerer", body(5, 0, answerer.index)),
]
refused_bodies = [
    ("version", "an Ask of version 2", body(1, 0, asker.index, asker.contribution, version=2)),
    ("malformed", "an Agree of version 2", body(2, 0, asker.index, agree[8:], version=2)),
    ("malformed", "empty", b""),
    ("malformed", "no index", ask[:7]),
    ("malformed", "an Ask without the last byte of its contribution", ask[:-1]),
    ("malformed", "an Agree without the last byte of its contribution", agree[:-1]),
    ("malformed", "an Ask with the reserved byte set", ask[:3] + b"\x01" + ask[4:]),
    ("malformed", "an Ask with a reason", ask[:2] + b"\x01" + ask[3:]),
    ("malformed", "an Ask with an index of WireGuard's", body(1, 0, asker.index ^ EXPRESS, asker.contribution)),
    ("malformed", "an Agree with an answerer's index of WireGuard's", flipped(agree, 11, 7)),
    ("malformed", "a Decline without a reason", body(3, 0, asker.index)),
    ("malformed", "an Opened with a reason", body(5, 1, answerer.index)),
    ("malformed", "an Opened with an index of WireGuard's", body(5, 0, answerer.index ^ EXPRESS)),
    ("malformed", "an unknown operation", body(99, 0, asker.index)),
]

packet = pattern(100, 0x45)
plain = [
    (forth, 0, b"", "the first of the asker: empty, so a keepalive"),
    (back, 0, b"", "the first of the answerer: the same counter, another key and index"),
    (forth, 1, pattern(16, 5), "one block"),
    (back, 1, pattern(16, 6), "one block"),
    (forth, 2, padded(packet), "an IP packet of 100 bytes, padded with zeros to 112"),
    (forth, 3, padded(pattern(1420, 9)), "as long as the MTU, so not padded, though 1420 is no multiple of 16"),
    (back, 3, padded(pattern(1420, 10)), "as long as the MTU"),
    (forth, 1 << 32, pattern(16, 11), "a counter of more than 32 bits"),
    (back, 1 << 32, b"", "a counter of more than 32 bits, empty"),
    (forth, COUNTERS - 1, pattern(16, 12), "the last counter"),
]
messages = [
    {
        "comment": comment,
        "direction": way,
        "counter": counter,
        "nonce": struct.pack("<4xQ", counter).hex(),
        "aad": header(receivers[way].index, counter).hex(),
        "plain": text.hex(),
        "message": seal(keys[way], receivers[way].index, counter, text).hex(),
    }
    for way, counter, text, comment in plain
]

good = seal(keys[forth], answerer.index, 7, pattern(32, 20))
foreign = seal(keys[back], answerer.index, 7, pattern(32, 20))
big_endian = header(answerer.index, 7) + AESGCM(keys[forth]).encrypt(
    struct.pack(">4xQ", 7), pattern(32, 20), header(answerer.index, 7)
)
no_aad = header(answerer.index, 7) + AESGCM(keys[forth]).encrypt(struct.pack("<4xQ", 7), pattern(32, 20), None)
rejected = [
    ("forged", "the last bit of the tag flipped", flipped(good, -1)),
    ("forged", "the first bit of the tag flipped", flipped(good, -16, 7)),
    ("forged", "a bit of the ciphertext flipped", flipped(good, 20)),
    ("forged", "a bit of the counter flipped", flipped(good, 8)),
    ("forged", "the last byte cut off", good[:-1]),
    ("forged", "a block of the ciphertext cut out", good[:16] + good[32:]),
    ("forged", "a byte appended", good + b"\0"),
    ("forged", "sealed with the key of the other direction", foreign),
    ("forged", "the counter big-endian in the nonce", big_endian),
    ("forged", "no associated data, as WireGuard has it", no_aad),
    ("malformed", "a bit of the receiver index flipped", flipped(good, 5)),
    ("malformed", "bit 31 of the receiver index cleared", flipped(good, 7, 7)),
    ("malformed", "reflected: a message to the asker", bytes.fromhex(messages[1]["message"])),
    ("malformed", "another message type", flipped(good, 0)),
    ("malformed", "a reserved byte set", flipped(good, 2)),
    ("malformed", "one byte less than header and tag", good[:31]),
    ("malformed", "the header alone", good[:16]),
    ("malformed", "half a header", good[:8]),
    ("malformed", "empty", b""),
    ("replayed", "a counter past the last", seal(keys[forth], answerer.index, COUNTERS, pattern(16, 21))),
    ("replayed", "the greatest counter", seal(keys[forth], answerer.index, (1 << 64) - 1, pattern(16, 22))),
]

print(
    json.dumps(
        {
            "comment": "Printed by tests/vectors/express.py. Bytes are hexadecimal; docs/express.md says what they mean.",
            "asker": asker.show(),
            "answerer": answerer.show(),
            "derivation": {
                "comment": "HKDF-SHA256, RFC 5869",
                "salt": LABEL.hex(),
                "ikm": secret.hex(),
                "info": info.hex(),
                "prk": prk.hex(),
                "okm": okm.hex(),
                **{way: key.hex() for way, key in keys.items()},
            },
            "bodies": [{"comment": comment, "op": op, "body": text.hex()} for op, comment, text in bodies],
            "refused_bodies": [
                {"comment": comment, "why": why, "body": text.hex()} for why, comment, text in refused_bodies
            ],
            "packets": [
                {
                    "comment": "Ask as the IP packet that is sealed for the answerer, before its padding",
                    "from": "asker",
                    "packet": agent_packet(asker, answerer, ask).hex(),
                },
                {
                    "comment": "Agree as the IP packet that is sealed for the asker, before its padding",
                    "from": "answerer",
                    "packet": agent_packet(answerer, asker, agree).hex(),
                },
            ],
            "messages": messages,
            "rejected": [
                {"comment": comment, "why": why, "direction": forth, "message": message.hex()}
                for why, comment, message in rejected
            ],
        },
        indent=1,
    )
)
