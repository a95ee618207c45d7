"""Downloads of data sets are complete, end in time, and happen once for all processes."""

import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import pytest

from tinytl.data import download
from tinytl.data.download import fetch
from tinytl.errors import UserError


class DataSet:
    """A data set as torchvision's are: whole where its folder is there; what is unpacked twice is counted."""

    def __init__(self):
        self.downloads, self.seen = 0, []
        self.breaks_after: int | None = None
        self.error: BaseException = OSError()

    def __call__(self, root, download):
        if not (root / "birds" / "images").is_dir():
            if not download:
                raise RuntimeError("not found")
            self.downloads += 1
            self.seen = sorted(path.name for path in root.iterdir())
            (root / "birds" / "images").mkdir(parents=True)
            (root / "birds.tgz").write_text("archive")
            for number in range(3):
                if number == self.breaks_after:
                    raise self.error
                (root / "birds" / "images" / f"{number}.jpg").write_text("")
        return sorted(path.name for path in (root / "birds" / "images").iterdir())


def get(root, make):
    return fetch("birds", root, "birds/images/*.jpg", make)


WHOLE = ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize("error", [OSError("connection lost"), KeyboardInterrupt()])
def test_half_a_download_is_never_taken_as_whole(tmp_path, error):
    make = DataSet()
    make.breaks_after, make.error = 1, error
    with pytest.raises((UserError, KeyboardInterrupt)):
        get(tmp_path, make)
    assert not (tmp_path / "birds").exists()
    make.breaks_after = None
    assert get(tmp_path, make) == WHOLE
    assert make.downloads == 2 and "birds.tgz" in make.seen  # the archive is used again
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["birds", "birds.tgz"]
    assert not (tmp_path / ".birds.partial").exists()


def test_what_was_put_there_by_hand_is_used_and_kept(tmp_path):
    make = DataSet()
    (tmp_path / "birds.tgz").write_text("by hand")
    assert get(tmp_path, make) == WHOLE and "birds.tgz" in make.seen
    (tmp_path / "more" / "birds").mkdir(parents=True)
    (tmp_path / "more" / "birds" / "mine.txt").touch()
    assert get(tmp_path / "more", make) == WHOLE
    assert (tmp_path / "more" / "birds" / "mine.txt").exists()


def test_of_two_at_once_one_downloads(tmp_path):
    make = DataSet()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: get(tmp_path, make), range(2))) == [WHOLE, WHOLE]
    assert make.downloads == 1


def test_a_silent_server_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE_SECONDS", 0.2)
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/birds.tgz"

        def make(root, download):
            if not download:
                raise RuntimeError("not found")
            return urlopen(address)

        with pytest.raises(UserError, match=r"data=birds .* cannot be downloaded \(.*timed out.*put into"):
            get(tmp_path, make)
    assert socket.getdefaulttimeout() == before


def test_a_root_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data=birds is not in .*file.*: birds/images"):
        get(tmp_path / "file" / "data", DataSet())
