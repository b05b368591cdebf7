# SPDX-License-Identifier: Apache-2.0
"""Free ports on the loopback interface, and a clean environment for the servers that use them."""

from __future__ import annotations

import os
import random
import socket

LOOPBACK = "127.0.0.1"
# Even with the 10000 that SeaweedFS adds for gRPC, these are below the kernel's ephemeral ports
# (from 32768), where any client may take a port that was free a moment ago.
PORTS = range(10_240, 22_000)
GRPC_OFFSET = 10_000


def is_free(port: int) -> bool:
    """Return whether a server could listen on the port now, on loopback and on all interfaces."""
    for host in (LOOPBACK, ""):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # Like servers: it ignores connections in TIME_WAIT, but never a listening socket.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def free_ports(count: int, *, with_grpc: bool = False) -> list[int]:
    """Pick distinct free ports at random, so that two stacks started at once rarely collide.

    :param count: The number of ports.
    :param with_grpc: Only ports whose gRPC port (10000 above) is also free.
    """
    found: list[int] = []
    # Not the shared generator, which tests may have seeded identically in every process.
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if is_free(port) and (not with_grpc or is_free(port + GRPC_OFFSET)):
            found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"No {count} free ports between {PORTS.start} and {PORTS.stop}.")


def clean_environment(*, keep_aws: bool = False) -> dict[str, str]:
    """Copy this process's environment without variables that would leak into a local stack.

    The Airflow and AWS settings of the user's shell are dropped (a stray ``AWS_PROFILE`` or
    ``AIRFLOW__CORE__EXECUTOR`` would change what runs), and so are API keys. Loopback is exempt from
    proxies.

    :param keep_aws: Keep the AWS variables, to use the user's own account.
    """
    foreign = ("AIRFLOW", "GETIMG_", "PYTEST_") + (() if keep_aws else ("AWS_",))
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in env.get(name, "").split(",") if host]
        env[name] = ",".join(dict.fromkeys([*hosts, LOOPBACK, "localhost"]))
    # Airflow starts eight interpreters; without a bytecode cache, each compiles everything that it imports.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    # Log files are read while they grow, and must not lose their last lines to a SIGKILL.
    env["PYTHONUNBUFFERED"] = "1"
    return env
