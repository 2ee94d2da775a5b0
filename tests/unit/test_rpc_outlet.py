"""Goal: an outlet is its own, whatever an event loop does to the socket it was made from; bad
descriptors are refused. Method: a pair of sockets, and descriptors that are none."""

import os
import socket

import pytest

from hybridps import _core


def test_it_outlives_the_socket_it_was_made_from_and_shuts_down_for_the_peer() -> None:
    ours, peer = socket.socketpair()
    with peer:
        outlet = _core.Outlet(ours.fileno())
        assert outlet.fileno() != ours.fileno()
        ours.close()
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(1)
        outlet.shutdown()
        assert peer.recv(1) == b""
        outlet.shutdown()


def test_it_is_closed_when_nobody_holds_it() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        outlet = _core.Outlet(ours.fileno())
        descriptor = outlet.fileno()
        del outlet
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_descriptors_that_are_none() -> None:
    with pytest.raises(OSError, match="open descriptor"):
        _core.Outlet(-1)
    ours, peer = socket.socketpair()
    descriptor = ours.fileno()
    ours.close()
    peer.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.Outlet(descriptor)
