"""Several processes fill one index: no picture twice, none missing, whatever is killed."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
from picture_folder import draw
from worker_encoders import LightEncoder, open_patiently, open_to_die, refuse

from tuplet.errors import ModelError, SearchIndexError, SettingsError
from tuplet.search.index import ImageIndex, picture_id
from tuplet.search.indexing import index_pictures
from tuplet.search.shards import Shard
from tuplet.search.workers import Workers, _results


def vectors(uri: str) -> dict[str, np.ndarray]:
    """The vectors of an index by path; every picture is there once."""
    batches = list(ImageIndex(uri).vectors())
    paths = [picture.path for batch in batches for picture in batch.pictures]
    assert max(Counter(paths).values()) == 1
    return dict(zip(paths, np.concatenate([batch.vectors for batch in batches]), strict=True))


def test_workers_make_the_index_that_one_process_makes(photos: Path, tmp_path: Path) -> None:
    uri, alone, embedder = str(tmp_path / "index"), str(tmp_path / "alone"), LightEncoder()
    broken = photos / "class 0" / "broken.png"
    broken.write_bytes(b"nothing")
    workers = Workers(3, open_patiently)
    report = index_pictures(uri, [photos], embedder, workers=workers, batch_size=2)
    assert report == index_pictures(alone, [photos], embedder)
    assert (report.added, len(report.unreadable)) == (12, 1)
    found, wanted = vectors(uri), vectors(alone)
    assert found.keys() == wanted.keys()
    for path, vector in found.items():
        np.testing.assert_allclose(vector, wanted[path], atol=1e-6)

    broken.unlink()
    (photos / "class 1" / "0.png").unlink()
    draw(photos, range(3), range(4, 6))
    report = index_pictures(uri, [photos], embedder, workers=workers)
    assert (report.added, report.dropped, report.unchanged, report.total) == (6, 1, 11, 17)
    # With nothing to embed, no worker is started, and what it would raise does not matter.
    wrong = Workers(2, refuse)
    assert index_pictures(uri, [photos], embedder, workers=wrong).unchanged == 17
    other = LightEncoder("1" * 64)
    with pytest.raises(ModelError) as error:
        index_pictures(uri, [photos], other, workers=wrong, rebuild=True)
    assert error.value.subject == "model"
    assert not embedder.model.difference(ImageIndex(uri).model)
    again = Workers(2, partial(open_patiently, "1" * 64))
    assert index_pictures(uri, [photos], other, workers=again, rebuild=True).total == 17
    assert not other.model.difference(ImageIndex(uri).model)


def test_a_worker_is_killed_and_the_same_call_goes_on(tmp_path: Path) -> None:
    photos, uri = draw(tmp_path / "photos", range(4), range(5)), str(tmp_path / "index")
    workers = Workers(2, partial(open_to_die, tmp_path / "marker", 4))
    with pytest.raises(SearchIndexError) as error:
        index_pictures(uri, [photos], LightEncoder(), workers=workers, batch_size=2)
    assert error.value.given == 1
    # The other worker's ten, and the four that the killed one had committed.
    assert len(vectors(uri)) == 14
    report = index_pictures(uri, [photos], LightEncoder(), workers=workers, batch_size=2)
    assert (report.added, report.unchanged, report.total) == (6, 14, 20)
    assert len(vectors(uri)) == 20


def test_a_worker_that_is_killed_while_it_sends_its_result() -> None:
    receiver, sender = Pipe(duplex=False)
    os.write(sender.fileno(), struct.pack("!i", 1000) + b"a part")
    sender.close()
    assert _results([receiver]) == [None]


_ENDLESS = """
import sys
from pathlib import Path
sys.path.insert(0, {helpers!r})
from worker_encoders import LightEncoder, open_slowly
from tuplet.search.indexing import index_pictures
from tuplet.search.workers import Workers
if __name__ == "__main__":
    index_pictures({uri!r}, [Path({photos!r})], LightEncoder(), workers=Workers(2, open_slowly))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
def test_workers_end_with_the_process_that_holds_the_lock(photos: Path, tmp_path: Path) -> None:
    uri, script = str(tmp_path / "index"), tmp_path / "script.py"
    helpers = str(Path(__file__).parents[1] / "helpers")
    script.write_text(_ENDLESS.format(helpers=helpers, uri=uri, photos=str(photos)))
    first = subprocess.Popen([sys.executable, str(script)], env=os.environ)

    def workers() -> list[str]:
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    try:
        ending = time.monotonic() + 120
        while len(started := workers()) < 2:
            assert first.poll() is None
            assert time.monotonic() < ending
            time.sleep(0.1)
        with pytest.raises(SearchIndexError):  # locked
            index_pictures(uri, [photos], LightEncoder())
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    ending = time.monotonic() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < ending
        time.sleep(0.1)
    assert index_pictures(uri, [photos], LightEncoder()).added == 12


def test_shards_are_disjoint_and_complete() -> None:
    ids = [picture_id(f"/photos/{number}.jpg") for number in range(1000)]
    for count in (1, 3, 7):
        shards = [Shard(number, count) for number in range(1, count + 1)]
        assert all(sum(shard.has(one) for shard in shards) == 1 for one in ids)
        sizes = [sum(map(shard.has, ids)) for shard in shards]
        assert min(sizes) > 0.7 * 1000 / count
    assert Shard.parse("2/4") == Shard(2, 4)
    for wrong in ("0/4", "5/4", "2", "a/b", "2/0", "-1/4", "1/4/2"):
        with pytest.raises(SettingsError):
            Shard.parse(wrong)


def test_a_share_leaves_the_others_alone(photos: Path, tmp_path: Path) -> None:
    uri, embedder = str(tmp_path / "index"), LightEncoder()
    first, second = Shard(1, 2), Shard(2, 2)
    one = index_pictures(uri, [photos], embedder, shard=first)
    two = index_pictures(uri, [photos], embedder, shard=second)
    assert (one.added + two.added, two.total) == (12, 12)
    assert (one.others, two.others, two.dropped) == (0, 0, 0)
    gone = next(path for path in vectors(uri) if second.has_path(path))
    Path(gone).unlink()
    assert index_pictures(uri, [photos], embedder, shard=first).dropped == 0
    assert index_pictures(uri, [photos], embedder, shard=second).dropped == 1
    with pytest.raises(SettingsError):
        index_pictures(uri, [photos], embedder, shard=first, rebuild=True)
    # The last call has nothing to embed, and joins the files of the shares.
    fragments = ImageIndex(uri).table.stats()["fragment_stats"]["num_fragments"]
    assert fragments > 1
    assert index_pictures(uri, [photos], embedder).unchanged == 11
    assert ImageIndex(uri).table.stats()["fragment_stats"]["num_fragments"] == 1
    version = ImageIndex(uri).version
    index_pictures(uri, [photos], embedder)
    assert ImageIndex(uri).version == version
