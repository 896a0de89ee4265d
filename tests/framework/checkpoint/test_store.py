"""The protocol on the disk: what is written, kept, found and refused."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework import CheckpointError, Piece, Snapshot
from framework.checkpoint import candidates, contents, files, find, fingerprint, manifest, newest, read, store, write

FILES = ["MANIFEST.json", "loop.safetensors", "model.safetensors", "optimizer.safetensors", "plugins.safetensors",
         "state.json"]  # fmt: skip


@pytest.fixture
def save(disk: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """Saves the state of a number into the run of this test."""

    def saved(number: int, *labels: str, step: int | None = None, exact: bool = True, bad: Any = ()) -> Path:
        return write(disk.snapshot(number, step, exact), tmp_path, labels or ["last"], bad)

    return saved


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def steps(run_dir: Path) -> list[int]:
    """The numbers of the states that are kept."""
    return sorted(read(path).epoch for path in candidates(run_dir))


def reseal(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a manifest tells, as somebody would who can write one."""
    told = json.loads((path / "MANIFEST.json").read_text("utf-8"))
    del told["sha256"]
    change(told)
    (path / "MANIFEST.json").write_bytes(store._sealed(told))


def replace(path: Path, name: str, data: bytes) -> None:
    """Change a file of a checkpoint, and its manifest with it."""
    (path / name).write_bytes(data)
    reseal(path, lambda t: t["files"].update({name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}))


# -------------------------------------------------------------------------------------------------------------- written


def test_a_checkpoint_is_these_files_and_its_manifest_tells_each(save: Any, tmp_path: Path) -> None:
    path = save(1, "last", step=1200)
    told = json.loads((path / "MANIFEST.json").read_text("utf-8"))

    assert path == tmp_path / "checkpoints" / "step-000000001200"
    assert names(tmp_path) == ["LAST", "step-000000001200"]
    assert sorted(file.name for file in path.iterdir()) == FILES
    assert sorted(told["files"]) == FILES[1:]
    for name, entry in told["files"].items():
        data = (path / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert {name: told[name] for name in ("format", "step", "epoch", "exact", "seq", "parent", "world_size")} == {
        "format": 2, "step": 1200, "epoch": 1, "exact": True, "seq": 1, "parent": None, "world_size": 1,
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{16}", told["run"])
    assert re.fullmatch(r"framework \d.*", told["writer"])
    assert manifest(path) == {name: value for name, value in told.items() if name != "sha256"}


def test_a_label_tells_the_name_and_the_hash_of_the_manifest(save: Any, tmp_path: Path) -> None:
    path = save(1, "best")

    assert json.loads((tmp_path / "checkpoints" / "BEST").read_text("utf-8")) == {
        "name": path.name,
        "manifest_sha256": hashlib.sha256((path / "MANIFEST.json").read_bytes()).hexdigest(),
    }


def test_the_order_of_saves_and_the_run_are_handed_on(save: Any, tmp_path: Path) -> None:
    told = [manifest(save(number, step=step)) for number, step in ((1, 10), (2, 20), (3, 5), (4, 5))]

    assert [entry["seq"] for entry in told] == [1, 2, 3, 4]
    assert [entry["parent"] for entry in told] == [
        None, "step-000000000010", "step-000000000020", "step-000000000005",
    ]  # fmt: skip
    assert len({entry["run"] for entry in told}) == 1
    assert manifest(write(Snapshot(0, 0, {}, {}), tmp_path / "other", []))["run"] != told[0]["run"]


def test_the_order_goes_on_where_the_newest_manifest_is_unreadable(save: Any, tmp_path: Path) -> None:
    save(1)
    (save(2) / "MANIFEST.json").write_text("{")
    save(3)

    assert newest(tmp_path)[1].epoch == 3
    (tmp_path / "checkpoints" / "LAST").unlink()
    assert [path.name for path in candidates(tmp_path)] == [f"step-{step:012d}" for step in (20, 30, 10)]
    assert newest(tmp_path)[1].epoch == 3


def test_every_part_of_a_snapshot_comes_back(disk: ModuleType, oracle: Any, tmp_path: Path) -> None:
    held = disk.snapshot(3, exact=False)
    held.model["0._extra_state"] = {"w": torch.ones(1), "n": (1, None)}
    held.model["empty"] = torch.ones(0, 3)
    held.rows = [{"epoch": 0, "train_loss": 0.5}, {"epoch": 1, "train_loss": 0.25, "lr": 1}, {"epoch": 2}], 2
    back = read(write(held, tmp_path, ["last"]))

    for name in ("epoch", "step", "model", "optimizer", "plugins", "loop", "exact"):
        oracle.assert_same(getattr(held, name), getattr(back, name), name)
    assert back.rows == (held.rows[0][:2], 2)


def test_other_readers_find_the_weights_under_their_own_names(tmp_path: Path) -> None:
    model = {
        "image.weight": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "turned": torch.arange(6.0).view(2, 3).t(),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    path = write(Snapshot(0, 0, {**model, "extra": {"n": 1}}, {}), tmp_path, ["last"])
    back = safetensors.torch.load_file(path / "model.safetensors")

    assert back.keys() == model.keys()
    assert all(torch.equal(back[name], model[name]) for name in model)


def test_the_fingerprint_tells_what_may_change_the_last_bits(save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told = manifest(save(1))["fingerprint"]
    model = {"w": torch.ones(1), "b": torch.ones(1, device="meta"), "extra": 1}

    assert told == fingerprint({"w": torch.ones(1)})
    assert told["torch"] == torch.__version__
    assert (told["devices"], fingerprint(model)["devices"]) == (["cpu"], ["cpu", "meta"])
    assert told["threads"] == torch.get_num_threads()
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: not told["deterministic"])
    assert fingerprint(model)["deterministic"] is not told["deterministic"]


# ----------------------------------------------------------------------------------------------------------------- kept


def test_kept_are_the_newest_two_and_those_that_labels_point_at(save: Any, tmp_path: Path) -> None:
    kept = []
    for number, labels in enumerate((["last"], ["last", "best"], ["last"], ["last", "epoch_4"], ["last"], ["last"]), 1):
        save(number, *labels)
        kept.append(steps(tmp_path))

    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 4, 5, 6]]
    save(7, "best")
    assert steps(tmp_path) == [4, 6, 7]


def test_the_newest_are_those_saved_last_whatever_their_steps(save: Any, tmp_path: Path) -> None:
    for number, step in ((1, 100), (2, 90), (3, 5), (4, 80)):
        save(number, step=step)

    assert steps(tmp_path) == [3, 4]


def test_what_was_taken_after_an_error_is_none_of_the_two(save: Any, tmp_path: Path) -> None:
    for number, exact in ((1, True), (2, True), (3, True), (4, False), (5, False)):
        save(number, exact=exact)

    assert steps(tmp_path) == [2, 3, 5]


def test_a_label_that_cannot_be_read_keeps_everything(save: Any, tmp_path: Path) -> None:
    save(1, "best")
    for text in ("", "{", '{"name": "step-000000000010"}', '{"name": "../x", "manifest_sha256": ""}'):
        (tmp_path / "checkpoints" / "BEST").write_text(text)
        for number in (2, 3, 4):
            save(number)
    assert 1 in steps(tmp_path)
    save(5, "best")
    assert steps(tmp_path) == [4, 5]


def test_what_was_found_damaged_counts_for_nothing_until_two_newer_ones_are_there(save: Any, tmp_path: Path) -> None:
    """The damage may have been a bad moment of the disk."""
    save(1)
    save(2)
    damaged = save(3)
    bad = [damaged.name]
    save(4, step=25, bad=bad)
    assert steps(tmp_path) == [2, 3, 4]
    save(5, step=30, bad=bad)  # of the same step, so newer
    assert steps(tmp_path) == [3, 4, 5]
    save(6, step=31, bad=bad)
    assert steps(tmp_path) == [5, 6]


def test_a_damaged_manifest_is_kept_until_two_newer_ones_are_there(save: Any, tmp_path: Path) -> None:
    damaged = save(1)
    (damaged / "MANIFEST.json").write_bytes(b"")
    save(2)
    assert damaged.exists()
    save(3)
    assert not damaged.exists()


def test_a_damaged_one_that_a_label_points_at_is_kept(save: Any, tmp_path: Path) -> None:
    damaged = save(1, "best")
    for number in (2, 3, 4):
        save(number, bad=[damaged.name])

    assert damaged.exists()


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors.bak", "subfolder"])
def test_a_checkpoint_with_something_of_the_users_is_left_alone(save: Any, tmp_path: Path, name: str) -> None:
    path = save(1)
    if name == "subfolder":
        (path / name).mkdir()
    else:
        (path / name).write_text("mine")
    for number in (2, 3, 4):
        save(number)

    assert sorted(file.name for file in path.iterdir()) == sorted([*FILES, name])


@pytest.mark.parametrize("name", [".DS_Store", "._state.json", "desktop.ini", "Thumbs.db"])
def test_what_a_file_browser_drops_harms_nothing(save: Any, tmp_path: Path, name: str) -> None:
    paths = [save(1), save(2)]
    for folder in (*paths, tmp_path / "checkpoints", tmp_path):
        (folder / name).write_bytes(b"\0")
    path, _, passed = newest(tmp_path)
    assert (path, passed) == (paths[1], [])
    save(3)
    save(4)

    assert steps(tmp_path) == [3, 4]
    assert (tmp_path / "checkpoints" / name).exists()


STRANGE = st.sampled_from([
    "notes.txt", ".DS_Store", "._LAST", "desktop.ini", "step-1", "step-00000000001", "step-000000000010-r", "last",
    "old-step-000000000010", "step-000000000010~", ".tmp-1", ".trash-x", ".tmp-0123456789", "-", "LAST.1a2b3c4d",
    "best",
]) | st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12)  # fmt: skip


@given(
    strange=st.dictionaries(STRANGE, st.sampled_from(["file", "folder", "link"]), max_size=6), seed=st.integers(0, 99)
)
@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@pytest.mark.skipif(os.name == "nt", reason="names that only POSIX allows")
def test_strange_files_and_the_times_of_files_change_nothing_and_are_left_alone(
    disk: ModuleType, tmp_path_factory: pytest.TempPathFactory, strange: dict[str, str], seed: int
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    folder = run_dir / "checkpoints"
    folder.mkdir()
    ours = re.compile(r"step-\d{12,}(-r\d+)?|[A-Z_][A-Z0-9_]*|\.(tmp|trash)-[0-9a-f]{8}|\.\.?")
    strange = {name: kind for name, kind in strange.items() if not ours.fullmatch(name)}
    for name, kind in strange.items():
        if kind == "folder":
            (folder / name).mkdir()
        elif kind == "link":
            (folder / name).symlink_to("nowhere")
        else:
            (folder / name).write_text("mine")
    draw = random.Random(seed)
    for number in (1, 2, 3, 4):
        write(disk.snapshot(number), run_dir, ["last"])
        for path in folder.rglob("*"):
            when = draw.randrange(2**31)
            os.utime(path, (when, when), follow_symlinks=False)
        assert newest(run_dir)[1].epoch == number

    assert {*names(run_dir)} == {*strange, "LAST", "step-000000000030", "step-000000000040"}


def test_the_clock_is_not_looked_at(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter([50.0, 40.0, 30.0, 20.0, 10.0])
    for name in ("time", "monotonic"):
        monkeypatch.setattr(time, name, lambda: next(hours))
    for number in (1, 2, 3):
        save(number)

    assert newest(tmp_path)[1].epoch == 3


def test_what_a_killed_process_left_is_swept(save: Any, tmp_path: Path) -> None:
    save(1)
    folder = tmp_path / "checkpoints"
    for name in (".tmp-0123abcd", ".trash-0123abcd"):
        shutil.copytree(folder / "step-000000000010", folder / name)
    (folder / ".tmp-ffffffff").write_text("half of a label")
    assert [path.name for path in candidates(tmp_path)] == ["step-000000000010"]
    save(2)

    assert names(tmp_path) == ["LAST", "step-000000000010", "step-000000000020"]


@pytest.mark.parametrize("what", ["link", "file"])
def test_what_has_the_name_of_a_checkpoint_and_is_no_directory_is_left_alone(
    save: Any, tmp_path: Path, what: str
) -> None:
    path = tmp_path / "checkpoints" / "step-000000000010"
    path.parent.mkdir()
    if what == "link":
        (tmp_path / "mine").mkdir()
        path.symlink_to(tmp_path / "mine", target_is_directory=True)
    else:
        path.write_text("mine")
    for number in (1, 2, 3):
        save(number)

    assert path.is_symlink() if what == "link" else path.read_text() == "mine"
    assert "step-000000000010-r1" not in [path.name for path in candidates(tmp_path)]
    assert steps(tmp_path) == [2, 3]


def test_removing_what_is_old_may_fail(save: Any, tmp_path: Path, disk: ModuleType) -> None:
    """It is a warning; and the next save removes it."""
    save(1)
    save(2)

    def fault(number: int, name: str, call: Callable[..., Any]) -> Any:
        if name in ("rename", "unlink") and ".trash-" in str(system.seen[-1]):
            raise OSError(16, "Device or resource busy")
        return call()

    system = disk.Numbered(fault)
    with disk.on(system), pytest.warns(UserWarning, match="cannot remove what is not needed any more .*busy"):
        save(3)
    assert steps(tmp_path) == [1, 2, 3]
    system.fault = lambda number, name, call: call() if name != "unlink" else fault(number, name, call)
    with disk.on(system), pytest.warns(UserWarning, match=r"cannot remove .*\.trash-.*busy"):
        save(4)
    assert (steps(tmp_path), len(names(tmp_path))) == ([3, 4], 5)
    save(5)
    assert names(tmp_path) == ["LAST", "step-000000000040", "step-000000000050"]


# ---------------------------------------------------------------------------------------------------------------- found


def test_the_label_last_comes_first_and_then_what_was_saved_last(save: Any, tmp_path: Path) -> None:
    save(1, "epoch_1", "last")
    save(2, "epoch_2")
    save(3, "epoch_3", step=5)

    assert [read(path).epoch for path in candidates(tmp_path)] == [1, 3, 2]
    (tmp_path / "checkpoints" / "LAST").unlink()
    assert [read(path).epoch for path in candidates(tmp_path)] == [3, 2, 1]
    assert (newest(tmp_path)[1].epoch, read(find(tmp_path, "last")).epoch) == (3, 3)


def test_the_first_sound_one_is_taken_and_each_one_before_it_is_told(save: Any, tmp_path: Path) -> None:
    for number in (1, 2, 3, 4):
        save(number, "last", f"epoch_{number}")
    (tmp_path / "checkpoints" / "step-000000000040" / "optimizer.safetensors").write_bytes(b"")
    (tmp_path / "checkpoints" / "step-000000000030" / "MANIFEST.json").write_text("{}")
    path, snapshot, passed = newest(tmp_path)

    assert (path.name, snapshot.epoch) == ("step-000000000020", 2)
    assert sorted(passed) == [
        "checkpoint step-000000000030 has format None; this version reads format 2",
        "checkpoint step-000000000040 is damaged: optimizer.safetensors: it has 0 bytes of 88",
    ]


def test_one_that_a_fit_can_go_on_from_exactly_comes_before_a_newer_one(save: Any, tmp_path: Path) -> None:
    save(1)
    save(2, exact=False)
    path, snapshot, passed = newest(tmp_path)
    assert (path.name, snapshot.epoch, snapshot.exact) == ("step-000000000010", 1, True)
    assert passed == ["checkpoint step-000000000020 was taken after an error inside a step"]
    shutil.rmtree(path)
    path, snapshot, passed = newest(tmp_path)
    assert (snapshot.epoch, snapshot.exact, passed) == (2, False, [])


def test_of_those_that_are_not_exact_the_newest_sound_one_is_taken(save: Any, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save(number, "last", f"epoch_{number}", exact=False)
    (tmp_path / "checkpoints" / "step-000000000030" / "state.json").unlink()
    _, snapshot, passed = newest(tmp_path)

    assert (snapshot.epoch, passed) == (2, ["checkpoint step-000000000030 is damaged: state.json is missing"])


def test_none_is_told_with_the_reason_for_each(save: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{tmp_path} has no checkpoint$"):
        newest(tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere has no checkpoint$"):
        newest(tmp_path / "nowhere")
    assert (find(tmp_path, "last", "best"), candidates(tmp_path)) == (None, [])
    (save(1) / "loop.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no checkpoint; checkpoint step-0+10 .*loop.safetensors is missing"):
        newest(tmp_path)


def test_a_directory_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    for call in (newest, candidates, lambda run: find(run, "last")):
        with pytest.raises(CheckpointError, match=r"^.+ cannot be read: .*Not a directory"):
            call(tmp_path)


def test_a_label_whose_checkpoint_is_another_one_by_now_points_nowhere(save: Any, tmp_path: Path) -> None:
    one, two = save(1, "best"), save(2, "last")
    one.rename(tmp_path / "x")
    two.rename(one)
    (tmp_path / "x").rename(two)

    assert find(tmp_path, "best") is None
    assert find(tmp_path, "last") == one  # the manifests tell that it is the newest


def test_looking_needs_no_right_to_write(save: Any, tmp_path: Path, disk: ModuleType) -> None:
    save(1)
    with disk.on(disk.counting()) as system:
        newest(tmp_path)
        find(tmp_path, "last")
    assert {name for name, *_ in system.seen} == {"lstat", "listdir", "open", "read", "close"}
    assert {flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) for name, *_, flags in system.seen if name == "open"} == {0}


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_told(save: Any, name: str) -> None:
    path = save(1)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"the checkpoint {path} .*{name}"):
        read(path)


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors.1", "MODEL.SAFETENSORS", "a", ".x"])
def test_a_file_too_many_is_told(save: Any, name: str) -> None:
    path = save(1)
    (path / name).write_text("x")
    with pytest.raises(CheckpointError, match=f"is damaged: {name} does not belong there"):
        read(path)


@pytest.mark.parametrize("name", FILES)
def test_bytes_are_checked_before_any_parser_sees_them(save: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(1)
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    seen: list[bytes] = []
    for owner, parser in ((store.codec, "parse"), (store.tensors, "load")):
        call = getattr(owner, parser)
        monkeypatch.setattr(owner, parser, lambda data, call=call: seen.append(data) or call(data))
    with pytest.raises(CheckpointError, match=f"is damaged: {name}: "):
        read(path)
    assert (bytes(data) in seen) == (name == "MANIFEST.json")  # whose hash is inside


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1], r"it has \d+ bytes of \d+"),
        (lambda data: b"", r"it has 0 bytes of \d+"),
        (lambda data: data + b" ", r"it has \d+ bytes, more than \d+"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 64]), "its sha256 differs from the manifest's"),
    ],
)
def test_a_file_of_another_size_or_content_is_told(save: Any, name: str, change: Any, said: str) -> None:
    path = save(1)
    (path / name).write_bytes(change((path / name).read_bytes()))
    with pytest.raises(CheckpointError, match=f"is damaged: {name}: {said}$"):
        read(path)


def test_a_file_that_is_larger_than_the_manifest_tells_is_not_read(save: Any, disk: ModuleType) -> None:
    path = save(1)
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(2**42)
    with disk.on(disk.counting()) as system, pytest.raises(CheckpointError, match="more than"):
        read(path)
    opened = [arguments[0].name for name, *arguments in system.seen if name == "open"]
    assert "model.safetensors" not in opened


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_a_file_that_is_no_file_is_told_and_not_opened(save: Any, tmp_path: Path, name: str, kind: str) -> None:
    path = save(1)
    (path / name).rename(tmp_path / name)
    if kind == "link":
        (path / name).symlink_to(tmp_path / name)
    elif kind == "pipe":
        os.mkfifo(path / name)
    else:
        (path / name).mkdir()
    with pytest.raises(CheckpointError, match=f"is damaged: {name}: it is no regular file"):
        read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b'"seq": 1', b'"seq": 2'),
        lambda data: data.replace(b'"exact": true', b'"exact": null'),
        lambda data: data.replace(b'"step": 10', b'"step": 11'),
        lambda data: data + b" ",
        lambda data: data.replace(b"\n ", b"\n  ", 1),
        lambda data: re.sub(rb',\n "sha256": "[0-9a-f]*"\n}$', b"\n}", data),
        lambda data: re.sub(rb'"sha256": "[0-9a-f]*"\n}$', b'"sha256": "0"\n}', data),
        lambda data: data[:-1],
        lambda data: data[:100],
        lambda data: b"[" * 10**5,
        lambda data: b"\xff" + data,
    ],
)
def test_a_manifest_that_was_changed_is_told(save: Any, change: Any) -> None:
    path = save(1)
    before = (path / "MANIFEST.json").read_bytes()
    (path / "MANIFEST.json").write_bytes(change(before))
    assert (path / "MANIFEST.json").read_bytes() != before
    for call in (read, manifest):
        with pytest.raises(CheckpointError, match=r"is damaged: MANIFEST\.json: "):
            call(path)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", "null", '"x"', '[["format", 2]]', '{"format": "2"}', '{"format": 3}']
)
def test_a_manifest_of_another_kind_is_told(save: Any, text: str) -> None:
    path = save(1)
    (path / "MANIFEST.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"is damaged: MANIFEST.json|has format .*; this version reads format 2"):
        read(path)


@pytest.mark.parametrize("told", [1, 3, "2", None, True, [2]])
def test_another_format_is_told_with_both_numbers(save: Any, told: Any) -> None:
    path = save(1)
    reseal(path, lambda manifest: manifest.update(format=told))
    with pytest.raises(
        CheckpointError, match=f"{path} has format {re.escape(repr(told))}; this version reads format 2"
    ):
        read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(more=1),
        lambda told: told.pop("seq"),
        lambda told: told.update(seq=-1),
        lambda told: told.update(seq="1"),
        lambda told: told.update(step=1.0),
        lambda told: told.update(step=-5),
        lambda told: told.update(epoch=True),
        lambda told: told.update(exact=1),
        lambda told: told.update(run=None),
        lambda told: told.update(parent=3),
        lambda told: told.update(fingerprint=[]),
        lambda told: told.update(files=[]),
        lambda told: told["files"].pop("loop.safetensors"),
        lambda told: told["files"].update({"../../outside": {"size": 0, "sha256": ""}}),
        lambda told: told["files"].update({"state.json": {"size": 1}}),
        lambda told: told["files"].update({"state.json": {"size": -1, "sha256": ""}}),
        lambda told: told["files"].update({"state.json": {"size": "1", "sha256": ""}}),
        lambda told: told["files"].update({"state.json": {"size": 1, "sha256": None}}),
        lambda told: told["files"].update({"state.json": {"size": 1, "sha256": "", "more": 1}}),
        lambda told: told["files"].update({"state.json": 3}),
    ],
)
def test_a_manifest_that_tells_nonsense_is_damaged(save: Any, change: Any) -> None:
    path = save(1)
    reseal(path, change)
    with pytest.raises(CheckpointError, match=r"is damaged: MANIFEST\.json: it does not tell what a manifest tells"):
        read(path)


@pytest.mark.parametrize(
    "state",
    [
        [], 3, None, {}, {"model": [], "optimizer": {}, "plugins": {}, "loop": {}},
        {"model": [], "optimizer": {}, "plugins": {}, "loop": {}, "rows": [], "more": 1},
        {"model": {}, "optimizer": [], "plugins": {}, "loop": {}, "rows": []},
        {"model": [[1]], "optimizer": {}, "plugins": {}, "loop": {}, "rows": []},
        {"model": [[[1], 2]], "optimizer": {}, "plugins": {}, "loop": {}, "rows": []},
        {"model": 5, "optimizer": {}, "plugins": {}, "loop": {}, "rows": []},
        {"model": [], "optimizer": {}, "plugins": {}, "loop": 1, "rows": []},
        {"model": [], "optimizer": {}, "plugins": {}, "loop": {}, "rows": 3},
        {"model": [], "optimizer": {}, "plugins": {}, "loop": {}, "rows": [{"names": 3}]},
        {"model": [], "optimizer": {}, "plugins": {}, "loop": {}, "rows": [{"names": [], "rows": [], "values": 1}]},
        {"model": [["w", {"$tensor": "nowhere"}]], "optimizer": {}, "plugins": {}, "loop": {}, "rows": []},
    ],
)  # fmt: skip
def test_a_state_that_tells_nonsense_is_damaged(tmp_path: Path, state: Any) -> None:
    path = write(Snapshot(0, 0, {}, {}), tmp_path, ["last"])
    replace(path, "state.json", store.codec.text(state))
    with pytest.raises(CheckpointError, match=r"is damaged: state.json: "):
        read(path)


def test_a_tensor_that_nothing_names_is_damage(save: Any) -> None:
    path = save(1)
    replace(path, "plugins.safetensors", safetensors.torch.save({"x": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"is damaged: state.json: it does not hold what a checkpoint holds"):
        read(path)


def test_tensors_that_cannot_be_read_are_told_with_their_file(save: Any) -> None:
    path = save(1)
    replace(path, "optimizer.safetensors", b"\0" * 20)
    with pytest.raises(CheckpointError, match=r"is damaged: optimizer.safetensors: "):
        read(path)


def test_a_checkpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, said in (("nowhere", "No such file or directory"), ("file", "Not a directory"), (".", "No such file")):
        with pytest.raises(CheckpointError, match=f"the checkpoint .* cannot be read: .*{said}"):
            read(tmp_path / name)


def test_a_checkpoint_that_does_not_fit_into_memory_is_told(save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(1)

    def out_of_memory(data: bytes) -> Any:
        raise MemoryError

    monkeypatch.setattr(store.tensors, "load", out_of_memory)
    with pytest.raises(CheckpointError, match=f"the checkpoint {path} does not fit into memory"):
        read(path)


# ------------------------------------------------------------------------------------------------------ cannot be saved


def test_too_little_space_is_told_before_anything_is_written(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.System, "free", lambda self, path: 1_300_000)
    big = Snapshot(1, 20, {"w": torch.zeros(500_000)}, {})
    folder = re.escape(str(tmp_path / "checkpoints"))
    with pytest.raises(
        CheckpointError, match=f"not enough space for a checkpoint: it needs 3 MB, 1 MB are free at {folder}$"
    ):
        write(big, tmp_path, ["last"])
    save(1)
    with pytest.raises(CheckpointError, match=f"are free at {folder}; the last one is step-000000000010$"):
        write(big, tmp_path, ["last"])
    assert names(tmp_path) == ["LAST", "step-000000000010"]


def test_too_little_memory_is_told(save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(1)

    def out_of_memory(data: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(store.tensors, "written", out_of_memory)
    with pytest.raises(CheckpointError, match="not enough memory to write a checkpoint"):
        save(2)
    assert newest(tmp_path)[1].epoch == 1


def test_a_state_that_cannot_be_kept_is_told_before_anything_is_written(disk: ModuleType, tmp_path: Path) -> None:
    held = disk.snapshot(1)
    held.plugins["p"] = object()
    with disk.on(disk.counting()) as system, pytest.raises(CheckpointError, match=r"plugins\.p is of type object"):
        write(held, tmp_path, ["last"])
    assert system.seen == []


def test_a_run_directory_that_was_removed_is_made_again(save: Any, tmp_path: Path) -> None:
    save(1)
    shutil.rmtree(tmp_path)
    save(2)

    assert newest(tmp_path)[1].epoch == 2


def test_a_label_is_not_followed_out_of_the_run(disk: ModuleType, tmp_path: Path) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    path = write(disk.snapshot(1), run, ["last"])
    path.rename(outside)
    try:
        path.symlink_to(outside, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")
    assert find(run, "last") is None


@pytest.mark.parametrize("name", ["x|piece 0", "x|piece 9", "x|piece 1+", "|piece 3"])
def test_a_name_like_that_of_a_piece_is_a_name_like_any_other(name: str, tmp_path: Path) -> None:
    held = {name: torch.tensor(1.5), "more": torch.ones(2)}
    path = write(Snapshot(0, 1, {name: torch.ones(3)}, {}, {"plugin": held}, {}), tmp_path, ["last"])
    found = read(path)
    assert torch.equal(found.model[name], torch.ones(3))
    assert {key: value.tolist() for key, value in found.plugins["plugin"].items()} == {name: 1.5, "more": [1.0, 1.0]}


def test_pieces_that_do_not_fit_together_are_damage(tmp_path: Path) -> None:
    path = write(Snapshot(0, 1, {"x": Piece(9, torch.ones(3))}, {}), tmp_path, ["last"])
    with pytest.raises(CheckpointError, match="is damaged"):
        read(path)


def test_the_manifest_of_thousands_of_processes_can_be_read() -> None:
    entry = {"size": 10**9, "sha256": "0" * 64}
    told = {"files": dict.fromkeys(contents.names_of(20_000), entry)}
    assert len(store._sealed(told)) < store.SMALL
