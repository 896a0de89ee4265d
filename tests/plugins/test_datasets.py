"""MNIST that is whole or told in one sentence, and digits that need no download.

The mirrors of torchvision are pointed at a server in this process, so nothing leaves the machine.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import shutil
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import torch
from framework_plugins import datasets
from framework_plugins.datasets import FILES, digits
from framework_plugins.datasets import mnist as load_mnist
from torchvision.datasets import MNIST

from framework import DataError
from framework.cli import main


class Mirror(http.server.ThreadingHTTPServer):
    """Serves the packed files, and remembers which were asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, []  # type: ignore[var-annotated]
        self.cut = False  # whether half of a file is sent
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        name = self.path.strip("/")
        content = self.server.files.get(name)
        if self.command == "GET":
            self.server.asked.append(name)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if self.server.cut else content)

    do_HEAD = do_GET  # torchvision asks for the address after redirections

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture(scope="module")
def packed() -> dict[str, bytes]:
    """Four files of the right length, packed; their content is zeros."""
    return {f"{name}.gz": gzip.compress(bytes(size), compresslevel=1) for name, size in FILES.items()}


@pytest.fixture
def mirror(packed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    server = Mirror(packed)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(MNIST, "mirrors", [server.url])
    monkeypatch.setattr(MNIST, "resources", [(n, hashlib.md5(content).hexdigest()) for n, content in packed.items()])
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The folder of the files, made already."""
    folder = tmp_path / "MNIST/raw"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", "http://127.0.0.1:9/again/"])  # nobody listens


def fetch(folder: Path) -> int:
    return main(["data", "fetch", "mnist", "--to", str(folder)])


def sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / "MNIST/raw" / name).stat().st_size for name in FILES}


def test_mnist_is_fetched_into_the_folder_where_torchvision_looks(mirror, tmp_path, capsys) -> None:
    assert fetch(tmp_path) == 0
    assert sizes(tmp_path) == FILES
    assert set(mirror.asked) == {f"{name}.gz" for name in FILES}
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"fetched   {tmp_path / 'MNIST' / 'raw'} (4 files)"
    assert f"FRAMEWORK_DATA={tmp_path}" in out
    assert not list((tmp_path / "MNIST/raw").glob(".tmp-*"))


def test_what_is_there_is_not_fetched_again(mirror, tmp_path, capsys) -> None:
    fetch(tmp_path)
    mirror.asked.clear()
    capsys.readouterr()
    assert fetch(tmp_path) == 0
    assert mirror.asked == []
    assert capsys.readouterr().out.startswith("complete  ")


def test_a_file_that_was_cut_off_is_fetched_again_and_no_other(mirror, tmp_path) -> None:
    fetch(tmp_path)
    raw = tmp_path / "MNIST/raw"
    for name in ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"):
        (raw / name).write_bytes((raw / name).read_bytes()[:1000])
    mirror.asked.clear()
    assert fetch(tmp_path) == 0
    assert sizes(tmp_path) == FILES
    assert set(mirror.asked) == {"train-images-idx3-ubyte.gz"}
    assert (
        hashlib.md5((raw / "train-images-idx3-ubyte.gz").read_bytes()).hexdigest()
        == dict(MNIST.resources)["train-images-idx3-ubyte.gz"]
    )


def test_a_packed_file_that_somebody_put_there_is_unpacked_without_a_network(
    mirror, packed, tmp_path, raw, monkeypatch
) -> None:
    for name, content in packed.items():
        (raw / name).write_bytes(content)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    assert fetch(tmp_path) == 0
    assert sizes(tmp_path) == FILES
    assert mirror.asked == []


def test_the_next_mirror_is_asked_where_the_first_fails(mirror, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", mirror.url])
    assert fetch(tmp_path) == 0
    assert sizes(tmp_path) == FILES


def test_of_several_failures_the_first_is_told(mirror, tmp_path, monkeypatch) -> None:
    mirror.files = {}  # the first mirror answers, with 404
    monkeypatch.setattr(MNIST, "mirrors", [mirror.url, "http://127.0.0.1:9/"])
    with pytest.raises(DataError, match="404") as caught:
        load_mnist(tmp_path)
    assert isinstance(caught.value.__cause__, HTTPError)
    caught.value.__cause__.close()  # it holds the answer of the server


def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it is connected to, and never answers
        monkeypatch.setattr(datasets, "TIMEOUT", 0.1)
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        with pytest.raises(DataError, match="timed out"):
            load_mnist(tmp_path)
    assert socket.getdefaulttimeout() is None


def test_a_server_that_speaks_no_http_is_told(tmp_path, monkeypatch) -> None:
    class Garbage(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(b"\x00\x07 what?\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Garbage) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_address[1]}/"] * 2)
        try:
            with pytest.raises(DataError, match="cannot be downloaded") as caught:
                load_mnist(tmp_path)
        finally:
            server.shutdown()
            thread.join()
    assert str(caught.value).isprintable()


def test_a_connection_that_breaks_off_leaves_nothing_that_looks_whole(mirror, tmp_path, capsys) -> None:
    mirror.cut = True
    assert fetch(tmp_path) == 2
    assert "cannot be downloaded" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "MNIST/raw").iterdir()] == []
    mirror.cut = False
    assert fetch(tmp_path) == 0


def test_without_a_network_one_sentence_tells_the_four_files_and_the_folder(offline, tmp_path, capsys) -> None:
    assert fetch(tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert "Traceback" not in said
    for name in FILES:
        assert f"{name}.gz" in said
    assert str(tmp_path / "MNIST" / "raw") in said
    for word in ("--data-root", "FRAMEWORK_DATA", "digits"):
        assert word in said


def test_without_a_network_a_damaged_file_is_named_and_kept(offline, tmp_path, raw) -> None:
    (raw / "train-images-idx3-ubyte").write_bytes(b"half")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is cut off and cannot be downloaded"):
        load_mnist(tmp_path)
    assert (raw / "train-images-idx3-ubyte").read_bytes() == b"half"


def test_a_damaged_packed_file_is_told(offline, tmp_path, raw) -> None:
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"half")
    with pytest.raises(DataError, match=r"is not there, train-images-idx3-ubyte\.gz is damaged, and cannot be"):
        load_mnist(tmp_path)


def test_a_whole_packed_file_that_cannot_be_unpacked_is_not_called_damaged(mirror, packed, tmp_path, raw) -> None:
    for name, content in packed.items():
        (raw / name).write_bytes(content)
    (raw / "train-images-idx3-ubyte").mkdir()  # in the way
    with pytest.raises(DataError, match=r"is not there and cannot be unpacked from train-images-idx3-ubyte\.gz \("):
        load_mnist(tmp_path)
    assert mirror.asked == []


def test_a_home_directory_of_nobody_is_told() -> None:
    with pytest.raises(DataError, match=r"~nobody-of-this-name.*names a home directory that is not there"):
        load_mnist("~nobody-of-this-name/data")


def test_a_tilde_is_the_home_directory(offline, tmp_path, monkeypatch) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_mnist("~/class")
    assert str(caught.value).startswith(str(tmp_path / "class" / "MNIST"))


@pytest.mark.parametrize("recipe", ["mnist_softmax", "mnist_mlp", "mnist_cnn", "mnist_binary"])
def test_a_recipe_never_takes_other_data_in_its_place(offline, tmp_path, monkeypatch, capsys, recipe) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMEWORK_DATA", raising=False)
    assert main([recipe]) == 2
    said = capsys.readouterr()
    assert str(Path("data/MNIST/raw")) in said.err
    assert said.out == ""
    assert not (tmp_path / "runs").exists()


def test_where_the_data_is_comes_from_the_option_then_the_variable_then_data(
    offline, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEWORK_DATA", "of-the-class")
    main(["mnist_mlp", "--data-root", "mine"])
    assert str(Path("mine/MNIST/raw")) in capsys.readouterr().err
    main(["mnist_mlp"])
    assert str(Path("of-the-class/MNIST/raw")) in capsys.readouterr().err
    monkeypatch.setenv("FRAMEWORK_DATA", "")
    main(["mnist_mlp"])
    assert str(Path("data/MNIST/raw")) in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(mirror, tmp_path, capsys) -> None:
    (tmp_path / "MNIST").write_text("in the way")
    assert fetch(tmp_path) == 2
    assert "cannot be downloaded" in capsys.readouterr().err


def test_a_read_only_folder_of_a_class_room_is_read(mnist: Path, tmp_path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(mnist / "MNIST" / "raw", raw, ignore=shutil.ignore_patterns("*.gz"))
    before = {path: path.stat().st_mtime_ns for path in raw.iterdir()}
    raw.chmod(0o500)
    try:
        train, test = load_mnist(tmp_path)
    finally:
        raw.chmod(0o700)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert {path: path.stat().st_mtime_ns for path in raw.iterdir()} == before


def test_images_of_both_parts_are_divided_by_255(mnist: Path) -> None:
    """The notes feed their test images as they are, from 0 to 255."""
    for part in load_mnist():
        image, digit = part[0]
        assert image.shape == (1, 28, 28)
        assert image.dtype == torch.float32
        assert (float(image.min()), float(image.max())) == (0.0, 1.0)
        assert digit == int(part.targets[0])


@pytest.mark.parametrize("arguments", [["fetch", "mnst"], ["fetsch", "mnist"], ["fetch"], []])
def test_a_mistaken_data_set_is_refused(arguments, capsys) -> None:
    assert main(["data", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


# ---------------------------------------------------------------------------------------------------- digits


def test_digits_are_three_parts_that_share_no_image() -> None:
    from sklearn.datasets import load_digits

    parts = digits()
    assert [len(part) for part in parts] == [1000, 400, 397]
    x = torch.cat([part.tensors[0] for part in parts])
    y = torch.cat([part.tensors[1] for part in parts])
    assert (x.dtype, y.dtype, x.shape[1:]) == (torch.float32, torch.int64, (64,))
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    original = load_digits()
    rows = torch.cat([(x * 16).int(), y.unsqueeze(1).int()], dim=1).tolist()
    expected = [[*map(int, row), int(label)] for row, label in zip(original.data, original.target, strict=True)]
    assert sorted(rows) == sorted(expected)


def test_the_order_of_the_digits_is_that_of_the_seed() -> None:
    def first(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return digits()[0].tensors[0]

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_noise_gives_that_share_of_the_training_digits_a_drawn_label() -> None:
    torch.manual_seed(0)
    clean, _, _ = digits(samples=300)
    torch.manual_seed(0)
    noisy, val, test = digits(samples=300, noise=0.2)
    assert torch.equal(clean.tensors[0], noisy.tensors[0])
    changed = clean.tensors[1] != noisy.tensors[1]
    assert not changed[60:].any()
    assert 40 <= int(changed.sum()) <= 60  # of 60 drawn labels one in ten is right by chance
    assert len(noisy) == 300
    assert (len(val), len(test)) == (400, 397)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"samples": 1001}, {"noise": 1.5}, {"noise": -0.1}])
def test_digits_that_are_not_there_are_refused(wrong) -> None:
    with pytest.raises(DataError, match="samples must be from 1 to 1000 and noise from 0 to 1"):
        digits(**wrong)
