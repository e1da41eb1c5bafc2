"""Addresses of this machine: what a process listens on is the configured interface, not every one."""

from __future__ import annotations

import os
import socket
import sys

import psutil

from recloom.data_shards.errors import UserError


def interface_address(interface: str) -> str:
    """The first IPv4 address of a network interface of this machine; raises UserError when it has none."""
    interfaces = psutil.net_if_addrs()
    for address in interfaces.get(interface, []):
        if address.family == socket.AF_INET:
            return address.address
    raise UserError(
        f"interface = '{interface}': {socket.gethostname()} has no such interface with an IPv4 address: "
        f"name one of {', '.join(sorted(interfaces))}."
    )


def listening_address(default: str) -> str:
    """Where this process listens: the interface that the launcher named, else `default`."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    return interface_address(interface) if interface else default


def listen(address: str, port: int, backlog: int) -> socket.socket:
    """A listening socket; raises UserError when the port is taken or the address is not of this machine."""
    try:
        return socket.create_server((address, port), backlog=backlog)
    except OSError as error:
        raise UserError(
            f"port {port} of {address}: it can't be listened on here ({error.strerror or error}): "
            "end what does, or set another `port` in the cluster's description."
        ) from None


if __name__ == "__main__":  # for scripts: python -m recloom.launcher.cluster.address INTERFACE
    try:
        print(interface_address(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
