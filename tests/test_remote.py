"""The shared part of the cache, on a real object store's interface (moto's server on the loopback) and in a folder."""

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

import remote
from files import ArrayStore
from remote import RemoteError


@pytest.fixture
def bucket(monkeypatch):
    """The address of a folder in a bucket of a server of its own."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    servers = pytest.importorskip("moto.server", reason="moto is not installed")
    import boto3

    server = servers.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test",
                        "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    name = f"studies-{time.time_ns()}"  # the server's process remembers the buckets of earlier tests
    boto3.client("s3").create_bucket(Bucket=name)
    s3fs.S3FileSystem.clear_instance_cache()  # of an earlier test's server
    yield f"s3://{name}/one"
    server.stop()


@pytest.fixture(params=["bucket", "folder"])
def shared(request, tmp_path, monkeypatch):
    """CACHE names a bucket, or a folder."""
    url = request.getfixturevalue("bucket") if request.param == "bucket" else (tmp_path / "shared").as_uri()
    monkeypatch.setenv("CACHE", url)
    return url


def never() -> np.ndarray:
    raise AssertionError("computed again")


def test_what_one_machine_computes_another_takes(shared, tmp_path):
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    first, second = ArrayStore(tmp_path / "first"), ArrayStore(tmp_path / "second")
    path = first.path("activations/net", "a clip")
    assert np.array_equal(first.get(path, lambda: values), values)
    there = second.path("activations/net", "a clip")
    assert np.array_equal(second.get(there, never), values) and there.is_file()
    second.fetch([second.path("activations/net", "another clip")])  # is not there: computed
    assert second.read(second.path("activations/net", "another clip")) is None


def test_what_is_not_as_it_was_written_is_computed_again_and_replaced(shared, tmp_path):
    first, values = ArrayStore(tmp_path / "first"), np.ones(4)
    path = first.path("kind", 1)
    first.write(path, values)
    name, folder = path.relative_to(first.folder).as_posix(), remote.Remote(shared)
    whole = folder.read(name)
    for broken in (whole[:-3], b"", b"x" + whole[1:]):
        folder.write(name, broken)
        store = ArrayStore(tmp_path / "second")
        assert np.array_equal(store.get(store.path("kind", 1), lambda: values), values)
        assert folder.read(name) == whole
        store.path("kind", 1).unlink()


def written(url: str, folder: Path, number: int) -> None:
    os.environ["CACHE"] = url
    store = ArrayStore(folder / str(number))
    for key in range(20):
        store.get(store.path("kind", key), lambda key=key: np.full(5000, key))


def test_two_processes_that_write_the_same_leave_it_whole(shared, tmp_path):
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=written, args=(shared, tmp_path, number)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    store = ArrayStore(tmp_path / "third")
    paths = [store.path("kind", key) for key in range(20)]
    store.fetch(paths)
    assert [store.read(path).tolist() for path in paths] == [[key] * 5000 for key in range(20)]


@pytest.mark.parametrize("url", ["nothing://there/folder", "s3://none-such/folder"])
def test_a_folder_that_cannot_be_used_is_named(url, bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE", url)
    store = ArrayStore(tmp_path)
    with pytest.raises(RemoteError, match=f"^CACHE={url}: "):
        store.write(store.path("kind", 1), np.ones(3))
    assert store.has(store.path("kind", 1))  # kept here all the same


def test_without_an_address_nothing_is_shared(tmp_path, monkeypatch):
    monkeypatch.delenv("CACHE", raising=False)
    store = ArrayStore(tmp_path)
    store.fetch([store.path("kind", 1)])
    assert store.remote is None
