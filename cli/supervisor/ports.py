"""The address that the web process will listen on, and a look at whether it answers."""

from __future__ import annotations

import asyncio
import errno
import socket

from cli.service import StartError


def free_port(host: str, port: int) -> int:
    """Checks that the web process will be able to listen there; for port 0 returns one that is free."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as fault:
        raise StartError(f"{host!r} is not an address to listen on: {fault}") from fault
    try:
        for family, kind, protocol, _, address in addresses:  # localhost has two
            with socket.socket(family, kind, protocol) as probe:
                # As the web server does: a connection of before that lingers does not count, a listener does.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address[0], port, *address[2:]))
                port = probe.getsockname()[1]
        return port
    except OSError as fault:
        where = f"port {port} on {host}"
        if fault.errno == errno.EADDRINUSE:
            raise StartError(f"{where} is taken by another program; choose another with --port") from fault
        if fault.errno == errno.EACCES:
            raise StartError(f"{where} needs privileges; choose one above 1023 with --port") from fault
        if fault.errno == errno.EADDRNOTAVAIL:
            raise StartError(f"{host} is not an address of this machine") from fault
        raise StartError(f"{where} can't be listened on: {fault.strerror}") from fault


EVERYWHERE = "0.0.0.0"  # nosec B104 # noqa: S104 - compared with, never bound


def base_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def reachable_host(host: str) -> str:
    """Where we reach a server that listens on `host`."""
    return "127.0.0.1" if host in ("", EVERYWHERE) else {"::": "::1"}.get(host, host)


async def why_not_200(host: str, port: int, path: str) -> str | None:
    """None if GET answers 200, else what it answers. Without httpx: importing it costs more than all of this."""
    request = f"GET {path} HTTP/1.0\r\nHost: localhost:{port}\r\nAccept: application/json\r\n\r\n"
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request.encode("ascii"))
                answer = await reader.read(16_384)
                while len(answer) < 16_384 and (more := await reader.read(16_384)):
                    answer += more
            finally:
                writer.close()
    except (OSError, TimeoutError) as fault:
        return str(fault) or "it does not answer within 5 s"
    head, _, body = answer.partition(b"\r\n\r\n")
    status, text = b"".join(head.split(b" ", 2)[1:2]), body[:500].decode("utf-8", "replace")
    return None if status == b"200" else f"{path} answers {status.decode('ascii', 'replace')}: {text}"
