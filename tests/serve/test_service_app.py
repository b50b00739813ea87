"""What the search server answers, over a real connection."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from live_server import TOKEN, Server, serving, small_index, wait_until
from picture_folder import DIM, draw, open_embedder, save_model
from prometheus_client.parser import text_string_to_metric_families

from tuplet.search.index import picture_id
from tuplet.search.indexing import index_pictures
from tuplet.serve.access import Access
from tuplet.serve.service import ServiceSettings


@pytest.fixture(scope="module")
def settings() -> ServiceSettings:
    return ServiceSettings(map_points=30)


def vectors_by_path(server: Server) -> dict[str, np.ndarray]:
    (batch,) = server.index.vectors()
    return {one.path: vector for one, vector in zip(batch.pictures, batch.vectors, strict=True)}


def test_an_upload_finds_what_all_products_say(server: Server) -> None:
    vectors = vectors_by_path(server)
    for path in ("class 1/3.png", 'it\'s/a "noise".jpg', "it's/lossless.tif"):
        file = server.photos / path
        answer = server.post("/search?top=6", file.read_bytes(), "image/jpeg")
        assert answer.status == 200
        tree = answer.json
        assert tree["query"] is None
        cosines = {one: float(vector @ vectors[str(file)]) for one, vector in vectors.items()}
        nearest = sorted(cosines, key=lambda one: -cosines[one])[:6]
        assert [one["path"] for one in tree["found"]] == nearest
        for one in tree["found"]:
            assert one["distance"] == pytest.approx(max(0, 1 - cosines[one["path"]]), abs=1e-5)
            assert one["exact_copy"] == (one["path"] == str(file))
            assert (one["id"], one["name"]) == (picture_id(one["path"]), Path(one["path"]).name)
            assert one["label"] == Path(one["path"]).parent.name


def test_a_picture_of_the_index_is_left_out_of_what_is_like_it(server: Server) -> None:
    path = str(server.photos / "class 2" / "0.png")
    vectors = vectors_by_path(server)
    tree = server.get(f"/search?id={picture_id(path)}&top=500").json
    assert tree["query"]["path"] == path
    wanted = sorted(vectors.keys() - {path}, key=lambda one: -float(vectors[one] @ vectors[path]))
    assert [one["path"] for one in tree["found"]] == wanted


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("label=class%201", 5),
        ("label=it%27s", 2),
        ("path=*.jpg", 1),
        ("path=class%20[02]/3.png", 2),
        ("label=class%201&path=*/3.png", 1),
        ("label=nobody", 0),
        ("label=%27%20OR%20%271%27=%271", 0),
        ("label=it%27s%27%3B%20DROP%20TABLE%20pictures%3B%20--", 0),
        ("label=", 0),
        ("label=%00", 0),
    ],
)
def test_filters(server: Server, condition: str, count: int) -> None:
    body = (server.photos / "class 1" / "0.png").read_bytes()
    answer = server.post(f"/search?top=100&{condition}", body)
    assert (answer.status, len(answer.json["found"])) == (200, count)
    assert server.index.count() == 17


def test_labels_pictures_and_the_map(server: Server) -> None:
    labels = server.get("/labels").json
    assert (labels["pictures"], labels["num_labels"]) == (17, 4)
    assert {one["label"]: one["pictures"] for one in labels["labels"]} == server.index.labels()
    some = server.get("/pictures?top=5").json["pictures"]
    assert len({one["id"] for one in some}) == 5
    more = server.get("/pictures?top=500").json["pictures"]
    assert {one["id"] for one in more} == {picture_id(path) for path in vectors_by_path(server)}
    assert more[:5] == some
    assert {one["label"] for one in server.get("/pictures?top=9&label=it%27s").json["pictures"]} == {"it's"}
    wait_until(lambda: server.get("/map").json["ready"])
    drawn = server.get("/map").json
    assert sorted(drawn["ids"]) == sorted(picture_id(path) for path in vectors_by_path(server))
    assert drawn["total"] == 17
    names = {picture_id(path): Path(path).parent.name for path in vectors_by_path(server)}
    assert [drawn["labels"][one] for one in drawn["label_of"]] == [names[one] for one in drawn["ids"]]
    for axis in (drawn["x"], drawn["y"]):
        assert 0 <= min(axis) < max(axis) <= 1
    assert max(np.ptp(drawn["x"]), np.ptp(drawn["y"])) == pytest.approx(1, abs=1e-3)


def test_files_and_thumbnails(server: Server) -> None:
    for path, kind in (("class 0/1.png", "image/png"), ("it's/lossless.tif", "image/tiff")):
        file = server.photos / path
        answer = server.get(f"/images/{picture_id(str(file))}")
        assert (answer.status, answer.headers["content-type"]) == (200, kind)
        assert answer.body == file.read_bytes()
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        small = server.get(f"/thumbnails/{picture_id(str(file))}")
        assert (small.headers["content-type"], small.body[:3]) == ("image/jpeg", b"\xff\xd8\xff")
        assert small.body == server.index.thumbnail(picture_id(str(file)))


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_nothing_from_elsewhere(server: Server, path: str) -> None:
    answer = server.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    text = answer.body.decode()
    assert not re.search(r"https?:|//[\w-]+\.\w", text)
    assert not re.search(r"(?:src|href)=\"(?!/|\")", text)
    assert not re.search(r"\son\w+=|\sstyle=|<script\s|<style\s|javascript:", text)
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    for element in ("script", "style"):
        parts = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in parts]
        assert policy[f"{element}-src"] == (" ".join(f"'sha256-{one}'" for one in hashes) or "'none'")


def test_the_description_names_every_address(server: Server) -> None:
    tree = server.get("/openapi.json").json
    text = server.get("/docs").body.decode()
    assert set(tree["paths"]) >= {"/search", "/images/{name}", "/thumbnails/{name}", "/health", "/metrics"}
    for path, operations in tree["paths"].items():
        assert f"<code>{path}</code>" in text
        assert all(operation["description"] in text for operation in operations.values())


def test_metrics_count(server: Server) -> None:
    def counts() -> dict[str, float]:
        found = {}
        for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
            for sample in family.samples:
                found[f"{sample.name}{json.dumps(sample.labels, sort_keys=True)}"] = sample.value
        return found

    before = counts()
    body = (server.photos / "class 1" / "0.png").read_bytes()
    for _ in range(3):
        server.post("/search", body)
    server.post("/search?top=0", body)
    server.get("/images/nothing")
    server.get("/nothing/at/all")
    after = counts()

    def more(name: str, **labels: str) -> float:
        key = f"{name}{json.dumps(labels, sort_keys=True)}"
        return after.get(key, 0) - before.get(key, 0)

    assert more("tuplet_requests_total", route="/search", method="POST", status="200") == 3
    assert more("tuplet_requests_total", route="/search", method="POST", status="422") == 1
    assert more("tuplet_requests_total", route="/images/{name}", method="GET", status="404") == 1
    assert more("tuplet_requests_total", route="other", method="GET", status="404") == 1
    assert more("tuplet_request_seconds_count", route="/search") == 4
    assert more("tuplet_batch_size_sum") == 3
    assert after["tuplet_index_rows{}"] == 17
    assert after["tuplet_queue_depth{}"] == 0
    assert after["process_resident_memory_bytes{}"] > 1e6


def test_a_burst_is_answered_or_asked_to_come_back(server: Server) -> None:
    body = (server.photos / "class 1" / "0.png").read_bytes()
    with server.beside(settings=ServiceSettings(queue=2, map_points=1)) as small:
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: small.post("/search?top=1", body), range(72)))
        assert {one.status for one in answers} <= {200, 503}
        good = [one for one in answers if one.status == 200]
        assert good
        assert len({one.body for one in good}) == 1
        for refused in (one for one in answers if one.status == 503):
            assert refused.headers["retry-after"] == "1"
            assert "too many pictures are waiting" in refused.detail
        assert small.post("/search?top=1", body).status == 200


def test_an_index_that_is_written_is_seen(tmp_path: Path) -> None:
    index, embedder, photos = small_index(tmp_path)
    settings = ServiceSettings(refresh_seconds=0.05, map_points=1)
    with serving(index, embedder, photos, settings=settings) as server:
        new = draw(tmp_path / "more", range(7, 8), range(2)) / "class 7" / "1.png"
        name = picture_id(str(new))
        assert server.get(f"/search?id={name}").status == 404
        index_pictures(index.uri, [tmp_path / "more"], embedder)
        wait_until(lambda: server.get("/labels").json["pictures"] == 19)
        assert server.get(f"/images/{name}").body == new.read_bytes()
        new.unlink()
        index_pictures(index.uri, [tmp_path / "more"], embedder)
        wait_until(lambda: server.get("/labels").json["pictures"] == 18)
        assert server.get(f"/thumbnails/{name}").status == 404

        other = open_embedder(save_model(tmp_path / "other", seed=1, dim=DIM + 1))
        index_pictures(index.uri, [tmp_path / "more"], other, rebuild=True)
        wait_until(lambda: server.get("/health").status == 503)
        body = (photos / "class 1" / "0.png").read_bytes()
        refused = server.post("/search", body)
        assert refused.status == 503
        assert "rebuilt with another model (other weights" in refused.detail
        # Between reading a vector and looking it up the index may be another one, so that is refused too.
        left = picture_id(str(tmp_path / "more" / "class 7" / "0.png"))
        refused = server.get(f"/search?id={left}")
        assert refused.status == 503
        assert "rebuilt with another model (other weights" in refused.detail
        assert server.get(f"/thumbnails/{left}").status == 200
        shutil.rmtree(index.uri)
        assert server.get("/labels").status == 200


def test_a_token_opens_everything_and_a_cookie_stands_for_it(server: Server) -> None:
    with server.beside(access=Access(TOKEN)) as closed:
        name = server.id_of("class 0/0.png")
        paths = [
            "/labels",
            f"/search?id={name}",
            f"/images/{name}",
            f"/thumbnails/{name}",
            "/map",
            "/metrics",
        ]
        for path in (*paths, "/docs", "/openapi.json", "/pictures", "/nothing"):
            refused = closed.get(path)
            assert refused.status == 401, path
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert "the token is missing" in refused.detail
            assert closed.get(path, authorization=f"Bearer {TOKEN}").status in (200, 404)
        for path in ("/", "/health"):
            assert closed.get(path).status == 200
            assert TOKEN.encode() not in closed.get(path).body
        for wrong in ("Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xe9"):
            assert "the token is wrong" in closed.get("/labels", authorization=wrong).detail, wrong
        assert closed.ask("POST", "/login").status == 401
        given = closed.ask("POST", "/login", headers={"authorization": f"bearer {TOKEN}"})
        assert (given.status, given.body) == (204, b"")
        cookie, *rules = given.headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(rules)
        assert TOKEN not in cookie
        assert closed.get(f"/images/{name}", cookie=cookie).status == 200
        assert closed.get("/labels", cookie=cookie[:-1] + "x").status == 401
        assert closed.get("/labels", cookie=f"tuplet-session={TOKEN}").status == 401
        # Another server with another token does not take it.
        with server.beside(access=Access(TOKEN + "2")) as another:
            assert another.get("/labels", cookie=cookie).status == 401
