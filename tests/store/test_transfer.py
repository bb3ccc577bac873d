"""Copies to and from URLs: checked, resumed; opening a URL stages it once."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.store.contract import make_header, write_targets

from kdpipe.errors import (
    DependencyError,
    InputNotFoundError,
    KdpipeError,
    OutputConflictError,
    StoreDamageError,
    StoreFormatError,
    StoreWriteError,
)
from kdpipe.store import StoreWriter, finish, open_store, store_info, transfer
from kdpipe.store.cache import cache_folder, mappable_path
from kdpipe.store.check import verify_store
from kdpipe.store.convert import convert_store
from kdpipe.store.hdf5_backend import read_user_block
from kdpipe.store.image import sealed_json
from kdpipe.store.paths import is_compact
from kdpipe.store.transfer import copy_store

HEADER = make_header()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDPIPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 protocol server on loopback; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Path(sys.executable).with_name("moto_server")
    process = subprocess.Popen(
        [server, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("NO_PROXY", "no_proxy"):
                patch.setenv(name, "127.0.0.1")
            _wait_for(url, process)
            yield url
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.2)


def make_store(path: Path, count: int = 10) -> str:
    write_targets(path, HEADER, range(count), flush_bytes=3000, shard_bytes=1 << 16)
    return finish(path)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def claim_digest(path: Path, digest: str) -> None:
    """Make a store say that it is another, with every checksum that it gives of itself right."""
    file = path / "zarr.json" if path.is_dir() else path
    content = file.read_bytes()
    start, end = (0, len(content)) if path.is_dir() else (22, int(content[13:21]))
    text = content[start:end] if path.is_dir() else content[start:end].rstrip()
    text = re.sub(rb'"checksum": "\w+"', b'"checksum": "00000000"', text)
    text = sealed_json(re.sub(rb'"digest": "\w+"', b'"digest": "%s"' % digest.encode(), text))
    padding = b"" if path.is_dir() else b"\n".rjust(end - start - len(text))
    file.write_bytes(content[:start] + text + padding + content[end:])


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
def test_to_a_url_and_back(tmp_path: Path, memory: Any, name: str) -> None:
    digest = make_store(tmp_path / name)
    url = f"memory://deep/down/{name}"
    seen: list[int] = []
    assert copy_store(tmp_path / name, url, seen.append) == digest
    assert copy_store(url, tmp_path / "back" / name) == digest
    assert verify_store(tmp_path / "back" / name).sound
    assert sum(seen) > 10_000
    assert copy_store(url, f"file://{tmp_path}/again/{name}") == digest
    assert copy_store(tmp_path / name, url) == digest


def test_what_is_in_the_cache_is_not_read_again(
    tmp_path: Path, memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "s.h5")
    copy_store(tmp_path / "s.h5", "memory://x/s.h5")
    first = open_store("memory://x/s.h5")
    monkeypatch.setattr(transfer, "_checksum", None)
    assert open_store("memory://x/s.h5").path == first.path


def test_a_compact_store_travels_and_is_opened(tmp_path: Path, memory: Any, cache: Path) -> None:
    digest = make_store(tmp_path / "s.zarr")
    convert_store(tmp_path / "s.zarr", tmp_path / "c.zarr", compact=True, level=1)
    copy_store(tmp_path / "c.zarr", "memory://x/c.zarr")
    for place in ("memory://x/c.zarr", tmp_path / "c.zarr"):
        store = open_store(place)
        assert store.digest == digest
        assert store.path == cache / "stores" / f"{digest}.zarr"
        assert (
            store["utt-00001"].reference == open_store(tmp_path / "s.zarr")["utt-00001"].reference
        )


@pytest.mark.parametrize("name", ["s.zarr", "s.h5", "c.zarr"])
def test_what_a_store_elsewhere_is_takes_no_copy_of_it(
    tmp_path: Path, memory: Any, cache: Path, name: str
) -> None:
    write_targets(tmp_path / "source.zarr", HEADER, range(20))
    finish(tmp_path / "source.zarr")
    convert_store(tmp_path / "source.zarr", tmp_path / name, compact=name[0] == "c", level=3)
    copy_store(tmp_path / name, f"memory://x/{name}")
    assert store_info(f"memory://x/{name}") == store_info(tmp_path / name)
    assert not cache.exists()
    place, offset = f"/x/{name}/table/c/0/0", 0
    if name == "s.h5":
        place, offset = f"/x/{name}", read_user_block(tmp_path / name)[3]["table"][0]
    content = bytearray(memory.cat_file(place))
    content[offset + 20] ^= 1
    memory.pipe_file(place, bytes(content))
    with pytest.raises(StoreDamageError, match="table"):
        store_info(f"memory://x/{name}")


def test_what_another_copy_left_does_not_get_in_the_way(tmp_path: Path) -> None:
    write_targets(tmp_path / "s.zarr", HEADER, range(20))
    finish(tmp_path / "s.zarr")
    convert_store(tmp_path / "s.zarr", tmp_path / "c.zarr", compact=True, level=3)
    target = tmp_path / "copies" / "t.zarr"
    shutil.copytree(tmp_path / "s.zarr", target.with_name(".t.copying.zarr"))
    copy_store(tmp_path / "c.zarr", target)
    assert verify_store(target).sound
    assert is_compact(target)


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
def test_a_store_that_claims_anothers_digest_does_not_become_it(
    tmp_path: Path, memory: Any, cache: Path, name: str
) -> None:
    digest = make_store(tmp_path / name)
    make_store(tmp_path / "false" / name, 4)
    claim_digest(tmp_path / "false" / name, digest)
    assert copy_store(tmp_path / "false" / name, f"memory://false/{name}") == digest
    copy_store(tmp_path / name, f"memory://x/{name}")
    with pytest.raises(StoreDamageError, match=r"memory://false.* digest"):
        open_store(f"memory://false/{name}")
    assert len(open_store(f"memory://x/{name}")) == 10
    assert len(list((cache / "stores").iterdir())) == 2


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
def test_a_staged_store_that_was_cut_short_is_staged_again(
    tmp_path: Path, memory: Any, name: str
) -> None:
    make_store(tmp_path / name)
    copy_store(tmp_path / name, f"memory://x/{name}")
    staged = open_store(f"memory://x/{name}").path
    victim = staged / "records/c/0" if staged.is_dir() else staged
    victim.write_bytes(victim.read_bytes()[:-9])
    assert open_store(f"memory://x/{name}").path == staged
    assert verify_store(staged).sound


def test_damage_in_the_cache_says_what_to_remove(tmp_path: Path, memory: Any) -> None:
    make_store(tmp_path / "s.zarr")
    copy_store(tmp_path / "s.zarr", "memory://x/s.zarr")
    store = open_store("memory://x/s.zarr")
    flip(store.path / "records/c/0", 100)
    with pytest.raises(StoreDamageError) as damaged:
        store.read_batch(store.ids)
    assert damaged.value.remedy.startswith(f"Remove {store.path}")
    assert str(damaged.value).endswith(damaged.value.remedy)


def test_a_shared_cache_is_read_by_who_may_not_write_it(
    tmp_path: Path, memory: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.h5", "b.h5"):
        make_store(tmp_path / name, 3 + (name == "b.h5"))
        copy_store(tmp_path / name, f"memory://x/{name}")
    open_store("memory://x/a.h5")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("kdpipe.store.cache.os.open", refuse)
    assert len(open_store("memory://x/a.h5")) == 3
    with pytest.raises(StoreWriteError, match="KDPIPE_CACHE"):
        open_store("memory://x/b.h5")


def test_the_umask_decides_who_may_lock(tmp_path: Path, memory: Any, cache: Path) -> None:
    before = os.umask(0o002)
    try:
        make_store(tmp_path / "s.h5")
        copy_store(tmp_path / "s.h5", "memory://x/s.h5")
        open_store("memory://x/s.h5")
        with StoreWriter(tmp_path / "begun.zarr", HEADER, flush_bytes=1):
            write_targets(tmp_path / "begun.zarr", HEADER, range(1))
    finally:
        os.umask(before)
    made = [*(cache / "stores").glob("*.lock"), *(tmp_path / "begun.zarr/journal").iterdir()]
    assert len(made) == 5
    assert {path.stat().st_mode & 0o777 for path in made} == {0o664}


def test_a_broken_off_copy_resumes(tmp_path: Path, memory: Any) -> None:
    make_store(tmp_path / "s.zarr")
    copy_store(tmp_path / "s.zarr", "memory://x/s.zarr")
    memory.rm("/x/s.zarr/zarr.json")
    memory.pipe("/x/s.zarr/ids/c/0", b"torn")
    with pytest.raises(InputNotFoundError):
        open_store("memory://x/s.zarr")
    written = []
    original = memory.open

    def counting(place: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "wb":
            written.append(place)
        return original(place, mode, **options)

    memory.open = counting
    try:
        copy_store(tmp_path / "s.zarr", "memory://x/s.zarr")
    finally:
        del memory.open
    assert written == ["/x/s.zarr/ids/c/0", "/x/s.zarr/zarr.json"]


def test_damage_does_not_travel(tmp_path: Path, memory: Any) -> None:
    make_store(tmp_path / "s.zarr")
    copy_store(tmp_path / "s.zarr", "memory://x/s.zarr")
    content = bytearray(memory.cat("/x/s.zarr/records/c/0"))
    content[77] ^= 4
    memory.pipe("/x/s.zarr/records/c/0", bytes(content))
    with pytest.raises(StoreDamageError, match="records/c/0"):
        copy_store("memory://x/s.zarr", tmp_path / "copy.zarr")
    assert not (tmp_path / "copy.zarr").exists()


@pytest.mark.parametrize("target", ["memory://y/s.h5", "copy.h5"])
def test_damage_in_an_hdf5_source_is_the_sources(tmp_path: Path, memory: Any, target: str) -> None:
    source, place = tmp_path / "s.h5", target if "://" in target else tmp_path / target
    make_store(source)
    whole = source.read_bytes()
    (records,) = re.findall(rb'"records": \[(\d+), \d+', whole)
    flip(source, int(records) + 100)
    with pytest.raises(StoreDamageError, match=r"s\.h5: records: its checksum"):
        copy_store(source, place)
    source.write_bytes(whole[:-100])
    with pytest.raises(StoreDamageError, match=r"s\.h5: file: is cut short"):
        copy_store(source, place)
    source.write_bytes(whole + b"more")
    with pytest.raises(StoreDamageError, match=r"s\.h5: file: has more"):
        copy_store(source, place)
    assert not memory.store
    assert not (tmp_path / "copy.h5").exists()


def test_a_file_that_the_source_lacks_is_the_sources(tmp_path: Path, memory: Any) -> None:
    make_store(tmp_path / "s.zarr")
    copy_store(tmp_path / "s.zarr", "memory://x/s.zarr")
    memory.rm("/x/s.zarr/ids/c/0")
    with pytest.raises(StoreDamageError, match=r"x/s\.zarr: ids/c/0: is missing"):
        copy_store("memory://x/s.zarr", tmp_path / "copy.zarr")


def test_another_store_in_the_place_is_left_alone(tmp_path: Path, memory: Any) -> None:
    make_store(tmp_path / "a.zarr", 3)
    make_store(tmp_path / "b.zarr", 4)
    copy_store(tmp_path / "a.zarr", "memory://x/s.zarr")
    for target in ("memory://x/s.zarr", tmp_path / "a.zarr"):
        with pytest.raises(OutputConflictError):
            copy_store(tmp_path / "b.zarr", target)
    with pytest.raises(StoreFormatError, match="suffix"):
        copy_store(tmp_path / "b.zarr", "memory://x/s.h5")


def test_an_empty_folder_takes_a_copy(tmp_path: Path) -> None:
    digest = make_store(tmp_path / "a.zarr", 3)
    (tmp_path / "b.zarr").mkdir()
    assert copy_store(tmp_path / "a.zarr", tmp_path / "b.zarr") == digest
    assert open_store(tmp_path / "b.zarr").digest == digest
    assert verify_store(tmp_path / "b.zarr").sound


def test_what_is_no_whole_copy_is_left_alone(tmp_path: Path) -> None:
    for name in ("a.zarr", "a.h5"):
        make_store(tmp_path / name, 3)
    for name, places in {"a.zarr": ("file", "foreign", "begun"), "a.h5": ("bare",)}.items():
        for place in places:
            target = _obstacle(tmp_path / place, name)
            before = sorted(target.rglob("*"))
            with pytest.raises(OutputConflictError, match="something else"):
                copy_store(tmp_path / name, target)
            assert sorted(target.rglob("*")) == before
            assert [item.name for item in target.parent.iterdir()] == [name]


def _obstacle(folder: Path, name: str) -> Path:
    """What stands in the place of a store: the name of `folder` says what."""
    folder.mkdir()
    target = folder / name
    if folder.name == "file":
        target.write_text("notes")
    elif folder.name == "begun":
        write_targets(target, HEADER, range(2))
    else:
        target.mkdir()
    if folder.name == "foreign":
        (target / "notes.txt").write_text("notes")
    return target


@pytest.mark.parametrize("name", ["s.zarr", "s.h5"])
def test_a_damaged_copy_does_not_pass_for_a_whole_one(tmp_path: Path, name: str) -> None:
    make_store(tmp_path / name)
    target = tmp_path / "copies" / name
    copy_store(tmp_path / name, target)
    damaged = target / "records" / "c" / "0" if target.is_dir() else target
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    with pytest.raises(OutputConflictError, match="damaged copy"):
        copy_store(tmp_path / name, target)
    assert damaged.read_bytes() == content


def test_what_cannot_be_reached_is_said(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/x/odd.zarr/zarr.json", b'{"attributes": {}}')
    expected = {
        "memory://nowhere/s.zarr": InputNotFoundError,
        "memory://x/odd.zarr": StoreFormatError,
        "hdfs3odd://x/s.zarr": KdpipeError,
        "gs://x/s.zarr": DependencyError,
        "http://127.0.0.1:1/s.zarr": KdpipeError,
    }
    for url, error in expected.items():
        with pytest.raises(error):
            open_store(url)


def stage(path: str) -> tuple[str, int]:
    staged = mappable_path(path)
    return str(staged), len(open_store(staged))


def test_concurrent_starts_stage_once(tmp_path: Path, cache: Path) -> None:
    digest = make_store(tmp_path / "s.zarr")
    convert_store(tmp_path / "s.zarr", tmp_path / "c.zarr", compact=True, level=1)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        staged = pool.map(stage, [str(tmp_path / "c.zarr")] * 4)
    assert set(staged) == {(str(cache / "stores" / f"{digest}.zarr"), 10)}
    assert sorted(p.name for p in (cache / "stores").iterdir()) == [
        f"{digest}.lock",
        f"{digest}.zarr",
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_s3(tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").mkdir("bucket")
    for name in ("s.zarr", "s.h5"):
        digest = make_store(tmp_path / name)
        assert copy_store(tmp_path / name, f"s3://bucket/stores/{name}") == digest
        store = open_store(f"s3://bucket/stores/{name}")
        assert store.digest == digest
        assert len(store.read_batch(store.ids)) == 10
    with pytest.raises(InputNotFoundError):
        open_store("s3://bucket/stores/absent.zarr")


def test_the_cache_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDPIPE_CACHE")
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/kdpipe")
