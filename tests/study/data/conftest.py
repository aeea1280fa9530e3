"""The fixture of the tests of data sets: a cache of the test's own, and no network."""

import socket

import pytest


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The folder of the cache; whoever asks the network fails, and paths start in the test's folder."""
    from parquet_folder import new_process  # needs the extra data

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setenv("CDGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    new_process()
    return tmp_path / "cache"
