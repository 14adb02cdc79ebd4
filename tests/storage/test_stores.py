from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arrowquant_dist.errors import ArrowQuantError, InvalidConfig, MissingDependency, NotFound, StorageError
from arrowquant_dist.storage.base import ByteRange, Store
from arrowquant_dist.storage.open import open_store
from arrowquant_dist.storage.uris import redact, split_uri
from tests.storage.places import Place


def test_objects_are_read_whole_and_by_ranges(place: Place) -> None:
    data = bytes(range(256)) * 40
    place.put("a/b.bin", data)
    store = open_store(place.uri, place.storage)
    assert store.read("a/b.bin") == data
    assert store.size("a/b.bin") == len(data)
    got = store.read_range("a/b.bin", ByteRange(300, 1700))
    assert got.tobytes() == data[300:1700]
    assert got.flags.writeable
    assert store.read_range("a/b.bin", ByteRange(5, 5)).size == 0


def test_read_into_fills_memory_of_any_dtype_and_shape(place: Place) -> None:
    values = np.arange(60, dtype=np.float32).reshape(5, 12)
    place.put("v", b"head" + values.tobytes())
    out = np.zeros_like(values)
    open_store(place.uri, place.storage).read_into("v", 4, out)
    assert np.array_equal(out, values)


def test_several_ranges_of_an_object_are_read_at_once(place: Place) -> None:
    data = np.random.default_rng(2).bytes(100_000)
    place.put("many", data)
    outs = [
        (start, np.zeros(nbytes, np.uint8))
        for start, nbytes in ((90_000, 10_000), (0, 1), (500, 0), (7, 60_000))
    ]
    store = open_store(place.uri, place.storage)
    store.read_all_into("many", outs)
    assert all(out.tobytes() == data[start : start + out.size] for start, out in outs)
    store.read_all_into("many", [])
    with pytest.raises(StorageError, match="bytes too early"):
        store.read_all_into("many", [(0, np.zeros(10, np.uint8)), (99_995, np.zeros(10, np.uint8))])


def test_a_root_that_is_one_object_has_the_empty_path(place: Place) -> None:
    place.put("model.bin", b"12345")
    store = open_store(f"{place.uri}/model.bin", place.storage)
    assert store.exists("")
    assert store.read_range("", ByteRange(1, 3)).tobytes() == b"23"
    assert [info.path for info in store.list()] == [""]
    assert store.url("").endswith("/model.bin")


def test_ranges_behind_the_end_name_object_and_bytes(place: Place) -> None:
    place.put("short", b"123")
    with pytest.raises(StorageError, match="2 bytes too early") as caught:
        open_store(place.uri, place.storage).read_range("short", ByteRange(1, 5))
    assert caught.value.byte_range == (1, 5)
    assert caught.value.uri is not None
    assert caught.value.uri.endswith("/short")


@pytest.mark.parametrize(
    "call",
    [
        lambda store, path: store.read(path),
        lambda store, path: store.info(path),
        lambda store, path: store.size(path),
        lambda store, path: store.open_reader(path),
        lambda store, path: store.read_range(path, ByteRange(0, 1)),
    ],
)
@pytest.mark.parametrize("path", ["nothing", "folder"])
def test_what_is_not_an_object_is_not_found(
    place: Place, call: Callable[[Store, str], object], path: str
) -> None:
    place.put("folder/x", b"1")
    with pytest.raises(NotFound):
        call(open_store(place.uri, place.storage), path)
    assert not open_store(place.uri, place.storage).exists(path)


def test_an_absent_root_is_empty(place: Place) -> None:
    store = open_store(place.uri, place.storage)
    assert store.list() == []
    assert store.list("folder") == []
    assert not store.exists("")


def test_a_list_is_recursive_sorted_and_knows_sizes_and_versions(place: Place) -> None:
    for path in ("b", "a/z", "a/c/d", "ab"):
        place.put(path, path.encode())
    store = open_store(place.uri, place.storage)
    found = store.list()
    assert [info.path for info in found] == ["a/c/d", "a/z", "ab", "b"]
    assert [info.path for info in store.list("a")] == ["a/c/d", "a/z"]
    assert [store.info(info.path) for info in found] == found
    assert found[0].nbytes == 5


def test_a_version_changes_with_the_object(place: Place) -> None:
    place.put("x", b"1")
    store = open_store(place.uri, place.storage)
    before = store.info("x")
    place.put("x", b"22")
    assert store.info("x").version != before.version


@pytest.mark.parametrize("count", [1, 3])
def test_what_changed_since_it_was_listed_is_not_deleted(place: Place, count: int) -> None:
    """Alone and among others: S3 has a request for each."""
    store = open_store(place.uri, place.storage)
    others = [f"folder/{i}" for i in range(1, count)]
    for path in ("folder/x", *others):
        store.create(path, b"old")
    seen = {info.path: info.version for info in store.list()}
    place.put("folder/x", b"another")
    assert store.delete_unchanged({**seen, "folder/gone": seen["folder/x"]}) == ["folder/x"]
    assert place.paths() == ["folder/x"]
    assert place.get("folder/x") == b"another"
    data, version = store.read_versioned("folder/x")
    assert data == b"another"
    assert store.delete_unchanged({"folder/x": version}) == []
    assert store.delete_unchanged({"folder/x": version}) == []
    assert store.delete_unchanged({}) == []
    assert place.paths() == []
    with pytest.raises(NotFound):
        store.read_versioned("folder/x")


def test_another_object_that_comes_right_after_the_look_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Where looking and deleting are one step, which is not so of Google's and Azure's clients."""
    kind = request.node.callspec.params["place"]
    if kind not in ("memory", "s3"):
        pytest.skip("it has no request to look with; tests/storage/test_locks.py has the local ones")
    store = open_store(place.uri, place.storage)
    for path in ("a/x", "a/y"):
        store.create(path, b"old")
    seen = {info.path: info.version for info in store.list()}
    looked = store._versions_of  # type: ignore[attr-defined]

    def look_and_lose(paths: list[str]) -> dict[str, str]:
        found: dict[str, str] = looked(paths)
        place.put("a/x", b"another")
        return found

    monkeypatch.setattr(store, "_versions_of", look_and_lose)
    assert store.delete_unchanged(seen) == ["a/x"]
    assert store.delete_unchanged({"a/x": seen["a/x"]}) == ["a/x"]
    assert place.get("a/x") == b"another"
    assert place.paths() == ["a/x"]


def test_a_write_replaces_and_leaves_nothing_else(place: Place) -> None:
    place.put("dir/x", b"old and longer")
    store = open_store(place.uri, place.storage)
    store.read_range("dir/x", ByteRange(0, 3))
    store.write("dir/x", b"new")
    store.write("other/y", b"")
    assert place.get("dir/x") == b"new"
    assert store.read_range("dir/x", ByteRange(0, 3)).tobytes() == b"new"
    assert place.paths() == ["dir/x", "other/y"]


def test_a_writer_takes_any_buffer_and_knows_its_position(place: Place) -> None:
    values = np.arange(1000, dtype=np.int32)
    with open_store(place.uri, place.storage).open_writer("deep/er/w") as writer:
        assert writer.write(b"head") == 4
        assert writer.write(values.data) == 4000
        assert writer.write(b"") == 0
        assert writer.tell() == 4004
    assert place.get("deep/er/w") == b"head" + values.tobytes()


@pytest.mark.parametrize("how", ["error", "abort", "dropped"])
def test_an_unfinished_writer_leaves_nothing(place: Place, how: str) -> None:
    store = open_store(place.uri, place.storage)
    writer = store.open_writer("w")
    writer.write(b"half")
    if how == "error":
        with pytest.raises(KeyError), writer:
            raise KeyError
    elif how == "abort":
        writer.abort()
        writer.close()
    del writer
    assert place.paths() == []


def test_the_reader_seeks_like_a_file(place: Place) -> None:
    data = np.random.default_rng(1).bytes(3 << 20)
    place.put("r", data)
    with open_store(place.uri, place.storage).open_reader("r") as reader:
        reader.seek(-10, os.SEEK_END)
        assert reader.read() == data[-10:]
        reader.seek(100)
        assert reader.read(2 << 20) == data[100 : 100 + (2 << 20)]
        reader.seek(5, os.SEEK_CUR)
        assert reader.tell() == 105 + (2 << 20)
        assert reader.read(3) == data[105 + (2 << 20) :][:3]


def test_create_makes_an_object_once(place: Place) -> None:
    store = open_store(place.uri, place.storage)
    assert store.create("run/c.json", b"first")
    assert not store.create("run/c.json", b"second")
    assert place.get("run/c.json") == b"first"
    assert place.paths() == ["run/c.json"]


def test_racing_creates_have_one_winner_with_its_whole_content(place: Place) -> None:
    stores = [open_store(place.uri, place.storage) for _ in range(12)]
    start = threading.Barrier(len(stores))
    won: list[int] = []

    def race(i: int) -> None:
        start.wait()
        if stores[i].create("c", bytes([i]) * 100_000):
            won.append(i)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert place.get("c") == bytes(won) * 100_000
    assert place.paths() == ["c"]


_RACE = """
import sys
from arrowquant_dist.storage.open import open_store
store, i = open_store(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
wins = [store.create(f"c{n}", bytes([i]) * 50_000) for n in range(50)]
print("".join("x" if won else "." for won in wins))
"""


def test_racing_processes_have_one_winner_each_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RACE, str(tmp_path)]
    gate, gate_of_all = os.pipe()
    racers = [
        subprocess.Popen([*command, str(i)], stdin=gate, stdout=subprocess.PIPE, text=True) for i in range(3)
    ]
    os.close(gate)
    assert [racer.stdout.readline() for racer in racers if racer.stdout] == ["ready\n"] * 3
    os.close(gate_of_all)
    wins = [racer.communicate()[0].strip() for racer in racers]
    for n in range(50):
        winner = [i for i, won in enumerate(wins) if won[n] == "x"]
        assert len(winner) == 1
        assert (tmp_path / f"c{n}").read_bytes() == bytes(winner) * 50_000
    assert len(list(tmp_path.iterdir())) == 50


def test_create_works_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(str(tmp_path))
    assert store.create("c", b"1")
    assert not store.create("c", b"2")
    assert [f.name for f in tmp_path.iterdir()] == ["c"]


def test_delete_does_not_mind_what_is_gone(place: Place) -> None:
    place.put("a/b/c", b"1")
    place.put("a/d", b"1")
    open_store(place.uri, place.storage).delete(["a/b/c", "never/there"])
    assert place.paths() == ["a/d"]


def test_emptied_folders_go_too(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"")
    open_store(str(tmp_path)).delete(["a/b/c"])
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.exists()


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a\0b"])
def test_paths_that_lead_out_are_refused(place: Place, path: str) -> None:
    store = open_store(place.uri, place.storage)
    for call in (store.read, store.open_writer, store.info):
        with pytest.raises(StorageError, match="leads out"):
            call(path)


def test_a_store_survives_pickling(place: Place) -> None:
    place.put("x", b"1")
    assert pickle.loads(pickle.dumps(open_store(place.uri, place.storage))).read("x") == b"1"  # noqa: S301


def test_many_threads_read_more_files_than_stay_open(tmp_path: Path) -> None:
    for i in range(150):
        (tmp_path / str(i)).write_bytes(bytes([i]) * 64)
    stores = [open_store(str(tmp_path))]
    wrong: list[int] = []

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(150):
            if stores[0].read_range(str(i), ByteRange(8, 40)).tobytes() != bytes([i]) * 32:
                wrong.append(int(i))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert _open_files(tmp_path) > 0
    stores.clear()
    assert _open_files(tmp_path) == 0


def _open_files(folder: Path) -> int:
    """How many descriptors of this process are files of `folder`."""
    links = [entry.resolve() for entry in Path("/proc/self/fd").iterdir()]
    return sum(link.is_relative_to(folder) for link in links)


_FULL = """
import resource, signal, sys
from arrowquant_dist.errors import StorageError
from arrowquant_dist.storage.open import open_store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = open_store(sys.argv[1])
try:
    with store.open_writer("part") as writer:
        for _ in range(100):
            writer.write(bytes(10_000))
except StorageError as error:
    print("part:", error)
try:
    store.create("commit", bytes(200_000))
except StorageError as error:
    print("commit:", error)
"""


def test_a_file_that_cannot_grow_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["part", "commit"]
    assert all("larger than this system allows" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_so_and_that_the_same_command_resumes(tmp_path: Path) -> None:
    (tmp_path / "part").symlink_to("/dev/full")
    with (
        pytest.raises(StorageError, match=r"disk is full.*same command again") as caught,
        open_store(str(tmp_path)).open_writer("part") as writer,
    ):
        writer.write(b"1")
    assert caught.value.uri == str(tmp_path / "part")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://key:secret@bucket/dir", "s3://bucket/dir"),
        ("https://host/a.bin?token=1#x", "https://host/a.bin"),
        (
            "abfs://container@account.dfs.core.windows.net/x",
            "abfs://container@account.dfs.core.windows.net/x",
        ),
        ("abfss://user:secret@account.dfs.core.windows.net/x", "abfss://account.dfs.core.windows.net/x"),
        ("zip://in::https://u:p@h/a?q=1::x", "zip://in::https://h/a::x"),
        ("hf://datasets/user/name@main/x", "hf://datasets/user/name@main/x"),
        ("/local/a?b@c", "/local/a?b@c"),
    ],
)
def test_credentials_and_queries_are_not_shown(uri: str, shown: str) -> None:
    assert redact(uri) == shown


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://b/dir/f.bin", ("s3://b/dir", "f.bin")),
        ("/abs/dir/x.bin", ("/abs/dir", "x.bin")),
        ("/x.bin", ("/", "x.bin")),
        ("x.bin", (".", "x.bin")),
        ("dir/x/", ("dir", "x")),
        ("file:///a/b", ("file:///a", "b")),
        ("s3://bucket", ("s3://bucket", "")),
        ("memory://a/b", ("memory://a", "b")),
    ],
)
def test_a_uri_splits_into_folder_and_name(uri: str, parts: tuple[str, str]) -> None:
    assert split_uri(uri) == parts


def test_a_relative_path_becomes_absolute_and_home_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("out/x").uri == str(tmp_path / "out/x")
    assert open_store("~/x").uri == str(tmp_path / "x")


def test_an_unknown_protocol_is_bad_input() -> None:
    with pytest.raises((InvalidConfig, MissingDependency)) as caught:
        open_store("nosuch://user:secret@x/y")
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)


def test_local_paths_do_not_import_fsspec(tmp_path: Path) -> None:
    use = "from arrowquant_dist.storage.open import open_store; open_store(sys.argv[1]).write('x', b'1')"
    check = f"import sys; {use}; sys.exit('fsspec' in sys.modules)"
    subprocess.run([sys.executable, "-c", check, str(tmp_path)], check=True)


def test_errors_of_libraries_behind_fsspec_are_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def broken(self: MemoryFileSystem, path: str) -> bytes:
        raise RuntimeError(f"the library's own, at {path}")

    store = open_store("memory://errors")
    monkeypatch.setattr(MemoryFileSystem, "cat_file", broken)
    with pytest.raises(ArrowQuantError, match="the library's own") as caught:
        store.read("x")
    assert isinstance(caught.value, StorageError)
    assert isinstance(caught.value.__cause__, RuntimeError)
