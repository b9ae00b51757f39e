"""What `onward up` finds on its ports, which it keeps from other users while a server starts again."""

from __future__ import annotations

import os
import socket

import pytest

from flows.services.ready import check_ports, unguarded
from flows.services.record import HomeRecord
from flows.services.serve import reserve
from storage.errors import ConfigError

NOBODY = 65534


def others(port: int) -> list[str]:
    """How another user can listen on a port: (address, socket options) of what succeeded."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        for address in ("127.0.0.1", "0.0.0.0"):
            for options in ([], [socket.SO_REUSEADDR], [socket.SO_REUSEADDR, socket.SO_REUSEPORT]):
                with socket.socket() as tried:
                    try:
                        for option in options:
                            tried.setsockopt(socket.SOL_SOCKET, option, 1)
                        tried.bind((address, port))
                        tried.listen()
                        os.write(writer, f"{address} {options};".encode())
                    except OSError:
                        pass
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as said:
        return [one for one in said.read().split(";") if one]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root can")
def test_a_port_stays_ours_while_its_server_starts_again():
    kept = reserve("127.0.0.1", 0)
    port = kept.getsockname()[1]
    with reserve("127.0.0.1", port) as server:  # the server, which listens and dies with a connection open
        server.listen()
        client = socket.create_connection(("127.0.0.1", port))
        assert server.accept()[0].fileno() > 0
    assert others(port) == []
    client.close()
    assert others(port) == []
    with reserve("127.0.0.1", port) as server:
        server.listen()  # and the next one
    kept.close()
    with reserve("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    assert len(others(port)) == 6, "the test sees what it looks for"


def test_a_server_of_the_same_users_other_home_has_its_port_for_itself():
    with reserve("127.0.0.1", 0) as other, reserve("127.0.0.1", 0) as free:
        port = other.getsockname()[1]
        check_ports(HomeRecord(port, free.getsockname()[1]), {})
        other.listen()
        with pytest.raises(
            ConfigError, match=f"port {port} for the Prefect server is taken: process {os.getpid()}"
        ):
            check_ports(HomeRecord(port, free.getsockname()[1]), {})


def test_a_server_that_asks_for_no_password_is_found(prefect_server, monkeypatch, tmp_path):
    """As 0.1.0 started them; `onward up` starts such a server again."""
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    with reserve("127.0.0.1", 0) as nobody:
        record = HomeRecord(prefect_server.port, nobody.getsockname()[1])
        assert "without a password" in (unguarded(record, "prefect") or "")
        assert unguarded(record, "mlflow") is None, "one that does not answer is started again anyway"
