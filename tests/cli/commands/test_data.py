from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tuplet.cli.main import main
from tuplet.data.published_sets import BENCHMARKS


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """CUB_200_2011.tgz with two images of two classes a side, which counts as all of CUB."""
    paths = [f"{name}/{n}.jpg" for name in ("001.A", "100.B", "101.C", "200.D") for n in "12"]
    pixels, stream = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, "JPEG")
    files = {f"CUB_200_2011/images/{path}": pixels.getvalue() for path in paths}
    lines = "".join(f"{n} {path}\n" for n, path in enumerate(paths, 1))
    files["CUB_200_2011/images.txt"] = lines.encode()
    files["attributes.txt"] = b""
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    cub = BENCHMARKS["cub"]
    assert cub.archive is not None
    known = replace(
        cub.archive, md5=hashlib.md5(stream.getvalue()).hexdigest(), url="http://127.0.0.1:9/c.tgz"
    )
    counts = {"train": (4, 2), "test": (4, 2)}
    monkeypatch.setitem(BENCHMARKS, "cub", replace(cub, archive=known, counts=counts))
    return stream.getvalue()


def test_fetch_and_describe(says, fails, tmp_path: Path, birds: bytes, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/c.tgz").write_bytes(birds)
    said = says("data", "fetch", "cub")
    assert said.splitlines() == [
        "CUB-200-2011: http://127.0.0.1:9/c.tgz -> data/CUB_200_2011",
        "             images  classes  images a class (min / median / max)",
        "train             4        2  2 / 2 / 2",
        "test              4        2  2 / 2 / 2",
        "",
        "Try next: tuplet train cub-resnet50 --data.root data/CUB_200_2011",
    ]
    assert [entry.name for entry in Path("data").iterdir()] == ["CUB_200_2011"]
    again = says("data", "fetch", "cub", "--to", "data")
    assert again.splitlines() == ["data/CUB_200_2011 exists already", *said.splitlines()[1:]]
    described = says("data", "describe", "--source", "cub", "--root", "data")
    assert described.splitlines() == said.splitlines()[1:4]
    Path("data/CUB_200_2011/images/101.C/1.jpg").unlink()
    error = fails("data", "fetch", "cub")
    missing = "data/CUB_200_2011/images/101.C/1.jpg"
    assert f"1 of the 8 images of CUB-200-2011 are not on disk: {missing}; want" in error


@pytest.mark.parametrize(
    ("name", "file"), [("cars", "cars_test_annos_withlabels.mat"), ("inshop", "Eval/list_eval_partition.txt")]
)
def test_what_has_to_be_got_by_hand(fails, capsys, tmp_path: Path, name: str, file: str) -> None:
    with pytest.raises(SystemExit):
        main(["data", "fetch", name, "--to", str(tmp_path)])
    out, error = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].endswith("has to be downloaded by hand:")
    assert [line[:3] for line in lines[1:]] == ["1. ", "2. ", "3. ", "4. "]
    assert file in out
    assert lines[-1].endswith(f"tuplet data describe --source {name} --root {tmp_path / name}")
    assert f"{tmp_path / name} does not exist yet" in error
    (tmp_path / name).mkdir()
    error = fails("data", "fetch", name, "--to", str(tmp_path))
    assert f"data.root {tmp_path / name} holds neither" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fetch", "tuplet data fetch is missing its benchmark; want one of cub, cars, sop, inshop"),
        ("fetch imagenet", "tuplet data fetch has no 'imagenet'; want one of cub, cars, sop, inshop"),
        ("fetch cub --too x", "there is no option --too; want perhaps --to;"),
        ("count", "tuplet data has no 'count'; want describe or fetch"),
        (
            "describe --source sop",
            "tuplet: --root is not given; want the folder that the benchmark was unpacked",
        ),
        ("describe --source cub --root nowhere", "tuplet: --root nowhere does not exist; want the folder"),
    ],
)
def test_errors(arguments: str, message: str, fails) -> None:
    assert message in fails("data", *arguments.split())


@pytest.mark.parametrize("arguments", ["", "--help", "fetch --help"])
def test_usage(arguments: str, says) -> None:
    said = says("data", *arguments.split())
    assert "tuplet data describe --root FOLDER" in said
    assert "tuplet data fetch BENCHMARK [--to FOLDER]" in said
