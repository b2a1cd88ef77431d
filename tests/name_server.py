"""A name server on loopback, UDP and TCP (RFC 1035), and the way there for the system's resolver in this process.

    with NameServer({"hooks.example.com": [["127.0.0.1"], ["10.0.0.1"]]}) as server, server.used():
        ...  # socket.getaddrinfo is answered by it; the answers of a name come in turn, for each type of record apart

Nothing of the resolving is replaced: glibc's `getaddrinfo` asks by UDP, and by TCP where an answer was cut short. Only
the name server's address, which `/etc/resolv.conf` can't give a port to, is set in the resolver's state of each thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from ipaddress import ip_address
from typing import Any, Self
from unittest import mock

from worker import connector

A, CNAME, AAAA = 1, 5, 28
MAX_UDP_BYTES = 512
NXDOMAIN, SERVFAIL = 3, 2

# Addresses, and names that the name stands for, in this order; or what goes wrong: a return code, or no answer at all.
Answer = Sequence[str] | int | None


class NameServer:
    """Runs on a thread of its own. `questions` counts what was asked: name, type, and "udp" or "tcp"."""

    def __init__(self, answers: Mapping[str, Sequence[Answer]]) -> None:
        self.answers = answers
        self.questions: Counter[tuple[str, int, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="name server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def asked(self, name: str, kind: int, by: str = "udp") -> int:
        return self.questions[name, kind, by]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within the block, threads that a transport makes for resolving ask this server and no other."""
        # Else nsswitch.conf may name something that is asked before the name server.
        _configure_lookup(b"hosts", b"files dns")
        pool = partial(ThreadPoolExecutor, initializer=self._point_thread)
        with mock.patch.object(connector, "ThreadPoolExecutor", pool):
            yield

    def _point_thread(self) -> None:
        assert _init() == 0
        state = _state().contents
        state.retrans, state.retry, state.nscount = 3, 1, 1  # s, times
        state.servers[0].family = socket.AF_INET
        state.servers[0].port = socket.htons(self.port)
        state.servers[0].address = (ctypes.c_uint8 * 4)(127, 0, 0, 1)

    async def _start(self) -> None:
        self._tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", 0)
        self.port = self._tcp.sockets[0].getsockname()[1]
        self._udp, _ = await self._loop.create_datagram_endpoint(lambda: _Udp(self), ("127.0.0.1", self.port))

    async def _stop(self) -> None:
        self._udp.close()
        self._tcp.close()
        await self._tcp.wait_closed()

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                reply = self.reply(await reader.readexactly(size), "tcp")
                if reply is not None:
                    writer.write(struct.pack("!H", len(reply)) + reply)
        writer.close()

    def reply(self, query: bytes, by: str) -> bytes | None:
        name, end = _read_name(query, 12)
        (kind,) = struct.unpack("!H", query[end : end + 2])
        question = query[12 : end + 4]
        # By TCP comes the question again whose answer was cut short.
        turn = self.questions[name, kind, "udp"] - (by == "tcp")
        self.questions[name, kind, by] += 1
        answers = self.answers.get(name, [NXDOMAIN])
        answer = answers[turn % len(answers)]
        if answer is None:
            return None
        if isinstance(answer, int):
            return query[:2] + struct.pack("!5H", 0x8180 | answer, 1, 0, 0, 0) + question
        records = _records(name, kind, tuple(answer))
        whole = query[:2] + struct.pack("!5H", 0x8180, 1, len(records), 0, 0) + question + b"".join(records)
        if by == "udp" and len(whole) > MAX_UDP_BYTES:
            return query[:2] + struct.pack("!5H", 0x8380, 1, 0, 0, 0) + question  # ask again by TCP
        return whole


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        reply = self._server.reply(data, "udp")
        if reply is not None:
            self._transport.sendto(reply, addr)


def _read_name(message: bytes, at: int) -> tuple[str, int]:
    labels = []
    while size := message[at]:
        labels.append(message[at + 1 : at + 1 + size].decode("ascii").lower())
        at += 1 + size
    return ".".join(labels), at + 1


@lru_cache  # of a thousand addresses glibc asks several times, with more room each time
def _records(name: str, kind: int, answer: tuple[str, ...]) -> list[bytes]:
    """A name in the answer is what the name before it stands for; addresses belong to the last."""
    records = []
    for it in answer:
        try:
            address = ip_address(it)
        except ValueError:
            records.append(_record(name, CNAME, _encoded(it)))
            name = it
            continue
        if kind == (A if address.version == 4 else AAAA):
            records.append(_record(name, kind, address.packed))
    return records


def _record(name: str, kind: int, data: bytes) -> bytes:
    return _encoded(name) + struct.pack("!HHIH", kind, 1, 0, len(data)) + data


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(it)]) + it.encode("ascii") for it in name.split(".")) + b"\0"


# --- glibc's resolver: the head of its state, which <resolv.h> gives away ---


class _Server(ctypes.Structure):
    _fields_ = (
        ("family", ctypes.c_uint16),
        ("port", ctypes.c_uint16),
        ("address", ctypes.c_uint8 * 4),
        ("zero", ctypes.c_uint8 * 8),
    )


class _State(ctypes.Structure):
    _fields_ = (
        ("retrans", ctypes.c_int),
        ("retry", ctypes.c_int),
        ("options", ctypes.c_ulong),
        ("nscount", ctypes.c_int),
        ("servers", _Server * 3),
    )


_libc = ctypes.CDLL(None)
_configure_lookup, _init, _state = (_libc[name] for name in ("__nss_configure_lookup", "__res_init", "__res_state"))
_state.restype = ctypes.POINTER(_State)
