from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from picture_folder import draw, open_embedder, save_model

from tuplet.errors import InputError
from tuplet.search.index import ImageIndex
from tuplet.search.indexing import index_pictures

boto3 = pytest.importorskip("boto3", reason="needs boto3, of moto[server]")
pytest.importorskip("flask", reason="needs flask, of moto[server]")
pytest.importorskip("flask_cors", reason="needs flask-cors, of moto[server]")
moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an empty bucket of a server on this machine."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT", f"http://{host}:{port}"),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "testing"),
        ("AWS_SECRET_ACCESS_KEY", "testing"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex}"
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket=name)
    yield name
    client.close()
    server.stop()


def test_an_index_in_object_storage_is_like_one_in_a_folder(bucket: str, tmp_path: Path) -> None:
    photos, embedder = (
        draw(tmp_path / "photos", range(2), range(3)),
        open_embedder(save_model(tmp_path / "m")),
    )
    uri = f"s3://{bucket}/some/index"
    with pytest.raises(InputError, match=r"there is no index in s3://"):
        ImageIndex(uri)
    assert index_pictures(uri, [photos], embedder).added == 6
    index = ImageIndex(uri)
    local = str(tmp_path / "index")
    index_pictures(local, [photos], embedder)
    for picture in ImageIndex(local).pictures():
        assert index.row(picture.id) == picture
        assert index.thumbnail(picture.id) == ImageIndex(local).thumbnail(picture.id)
        assert index.nearest(index.vector(picture.id), 1)[0].distance < 1e-5
    (photos / "class 0" / "0.png").unlink()
    report = index_pictures(uri, [photos], embedder)
    assert (report.added, report.dropped, report.unchanged) == (0, 1, 5)
    assert index.count() == 6
    index.refresh()
    assert index.count() == 5
    assert not [one for one in tmp_path.rglob("*") if "s3:" in str(one)]
    with pytest.raises(InputError, match="cannot open the index s3://") as error:
        ImageIndex("s3://no-such-bucket/index")
    assert "cargo" not in str(error.value)
