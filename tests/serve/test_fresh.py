"""What the search server makes of an index that changes, or cannot be read, while it runs."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live_server import Server, saved, serving, small_index, wait_until
from picture_folder import draw, open_embedder, save_model

from tuplet.errors import SearchIndexError
from tuplet.search.index import ImageIndex, VectorBatch, picture_id
from tuplet.search.indexing import index_pictures
from tuplet.serve.service import ServiceSettings


def test_refreshing_goes_on_whatever_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index, embedder, photos = small_index(tmp_path)
    settings = ServiceSettings(refresh_seconds=0.05, map_points=1)
    with serving(index, embedder, photos, settings=settings) as server:
        assert server.get("/health").json == {"status": "ok"}
        assert b"\ntuplet_index_stale 0.0" in server.get("/metrics").body
        with monkeypatch.context() as patch:

            def refresh(self: ImageIndex) -> None:
                raise ZeroDivisionError("nobody\nthought of this")

            patch.setattr(ImageIndex, "refresh", refresh)
            wait_until(lambda: server.service.stale_since is not None)
            health = server.get("/health")
            assert health.status == 200
            since = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
            wanted = rf"ok, but the index has not been refreshed since {since}; the log says why"
            assert re.fullmatch(wanted, health.json["status"])
            assert b"\ntuplet_index_stale 1.0" in server.get("/metrics").body
            assert server.post("/search?top=1", saved("PNG")).status == 200
        (message, *_) = [one.getMessage() for one in caplog.records if "refreshed" in one.getMessage()]
        assert message == "the index cannot be refreshed: ZeroDivisionError: nobody thought of this"
        index_pictures(index.uri, [draw(tmp_path / "more", range(7, 8), range(1))], embedder)
        wait_until(lambda: server.get("/labels").json["pictures"] == 18)
        wait_until(server.is_well)


def test_vectors_of_two_models_never_meet_while_it_refreshes(tmp_path: Path) -> None:
    index, embedder, photos = small_index(tmp_path)
    settings = ServiceSettings(refresh_seconds=3600, map_points=1)
    with serving(index, embedder, photos, settings=settings) as server:
        other = open_embedder(save_model(tmp_path / "other", seed=1))
        index_pictures(index.uri, [photos], other, rebuild=True)
        assert server.post("/search?top=1", saved("PNG")).status == 200
        index.refresh()  # as in its thread, a moment before the service knows of it
        assert not server.service.collection.problem
        name = picture_id(str(photos / "class 0" / "0.png"))
        for condition in ("", "&label=class%201", "&path=*.png"):
            for answer in (
                server.post(f"/search?top=1{condition}", saved("PNG")),
                server.get(f"/search?id={name}{condition}"),
            ):
                assert answer.status == 503
                assert "rebuilt with another model (other weights" in answer.detail


def test_equal_questions_wait_for_one_answer_and_its_error_is_not_kept(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, draws, may_go = ImageIndex.sample, [], threading.Event()

    def sample(self: ImageIndex, count: int, seed: int, *, labels: list[str] | None = None) -> VectorBatch:
        if labels is None:  # the map in the background draws too
            return honest(self, count, seed)
        draws.append(labels)
        assert may_go.wait(20)
        if len(draws) == 1:
            raise SearchIndexError("the disk is gone")
        return honest(self, count, seed, labels=labels)

    monkeypatch.setattr(ImageIndex, "sample", sample)
    assert server.get("/pictures?label=nobody").json == {"pictures": []}
    assert draws == []
    for drawn in (1, 2):
        may_go.clear()
        with ThreadPoolExecutor(12) as pool:
            path = "/pictures?label=class%201&top="
            answers = [pool.submit(server.get, f"{path}{top}") for top in range(1, 13)]
            wait_until(lambda drawn=drawn: len(draws) == drawn)  # type: ignore[misc]
            time.sleep(0.3)  # for all of them to have asked
            may_go.set()
        if drawn == 1:
            assert {(one.result().status, one.result().headers["retry-after"]) for one in answers} == {
                (503, "5")
            }
        else:
            assert [len(one.result().json["pictures"]) for one in answers] == [1, 2, 3, 4, *[5] * 8]
        assert draws == [["class 1"]] * drawn
    assert server.get("/pictures?label=class%201").status == 200
    assert len(draws) == 2
