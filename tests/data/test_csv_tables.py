from __future__ import annotations

from pathlib import Path
from zlib import crc32

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tuplet.config import DataConfig
from tuplet.data.csv_tables import load_table
from tuplet.data.image_tables import FileImages
from tuplet.data.load import load
from tuplet.data.splits import ReadSettings, Split
from tuplet.errors import DataError, InputError

SKIP = ReadSettings(on_bad_image="skip")
ROWS = [(f"{label} s/{n}.png", label) for label in ("oak", "elm", "ash", "yew") for n in (2, 1)]


def put(folder: Path, rows: list[tuple[str, ...]]) -> None:
    for path, *_ in rows:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), f"#{crc32(bytes(file)) & 0xFFFFFF:06x}").save(file)


def listed(*rows: tuple[str, ...], heading: str = "path,label,split") -> str:
    return "\n".join([heading, *(",".join(row) for row in rows)]) + "\n"


def classes_of(split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return split.train.class_names, split.test.class_names


def paths_of(table: object) -> list[str]:
    assert isinstance(table, FileImages)
    return [str(Path(path).parent.name + "/" + Path(path).name) for path in table.paths]


def test_csv_split_by_class(tmp_path: Path) -> None:
    put(tmp_path, ROWS)
    file = tmp_path / "all.CSV"
    text = "\ufeffName, Label ,PATH\r\n" + "".join(f'x,{label},"{path}"\r\n' for path, label in ROWS) + "\r\n"
    file.write_bytes(text.encode())
    split = load(DataConfig(source="table", root=file))
    assert classes_of(split) == (("ash", "elm"), ("oak", "yew"))
    assert paths_of(split.train) == ["ash s/2.png", "ash s/1.png", "elm s/2.png", "elm s/1.png"]
    assert split.train.image(0).shape == (3, 5, 6)
    assert classes_of(load_table(file, ReadSettings(train_fraction=0.7))) == (("ash", "elm", "oak"), ("yew",))
    assert len({load_table(file, ReadSettings(split_seed=seed)).train.class_names for seed in range(9)}) > 1


def test_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = [(f"{label}/{n}.png", label) for label in ("10", "9", "100", "2") for n in "12"]
    put(tmp_path, rows)
    (tmp_path / "t.csv").write_text(listed(*rows, heading="path,label"))
    assert classes_of(load_table(tmp_path / "t.csv")) == (("2", "9"), ("10", "100"))
    renamed = [(path, label.replace("9", "009")) for path, label in rows]
    (tmp_path / "t.csv").write_text(listed(*renamed, heading="path,label"))
    assert classes_of(load_table(tmp_path / "t.csv")) == (("009", "10"), ("100", "2"))


def test_given_split(tmp_path: Path) -> None:
    put(tmp_path, ROWS)
    rows = [(path, label, "Training" if label in ("yew", "oak") else "TEST") for path, label in ROWS]
    (tmp_path / "t.csv").write_text(listed(*rows))
    split = load_table(tmp_path / "t.csv")
    assert classes_of(split) == (("oak", "yew"), ("ash", "elm"))
    assert split.gallery is None


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_queries_and_gallery(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "inner", ROWS)
    parts = {
        "oak": ("train", "train"),
        "elm": ("train",) * 2,
        "ash": ("query", "gallery"),
        "yew": ("gallery",) * 2,
    }
    rows = [
        (str(tmp_path / "inner" / path) if label == "ash" else f"inner/{path}", label, parts[label][at % 2])
        for at, (path, label) in enumerate(ROWS)
    ]
    file = tmp_path / f"t.{kind}"
    if kind == "csv":
        file.write_text(listed(*rows))
    else:
        columns = dict(zip(("path", "label", "split"), zip(*rows, strict=True), strict=True))
        labels = pyarrow.array(columns["label"]).dictionary_encode()
        table = {"path": columns["path"], "x": [1.0] * 8, "label": labels, "split": columns["split"]}
        pyarrow.parquet.write_table(pyarrow.table(table), file)
    split = load(DataConfig(source="table", root=file, cache="memory"))
    assert split.train.class_names == ("elm", "oak")
    assert split.gallery is not None
    assert split.test.class_names == split.gallery.class_names == ("ash", "yew")
    assert [split.test.name(0)] == [str(tmp_path / "inner" / "ash s" / "2.png")]
    assert split.gallery.labels.tolist() == [0, 1, 1]


def test_parquet_of_integers(tmp_path: Path) -> None:
    rows = [(f"{label}/{n}.png", str(label)) for label in (3, 20, 1, 10) for n in "12"]
    put(tmp_path, rows)
    table = {"path": [path for path, _ in rows], "label": [int(label) for _, label in rows]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    assert classes_of(load_table(tmp_path / "t.parquet")) == (("1", "3"), ("10", "20"))


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    put(tmp_path, ROWS)
    file = tmp_path / "t.csv"
    file.write_text(listed(*ROWS, ("oak s/3.png", "oak"), ("gone/4.png", "elm"), heading="path,label"))
    with pytest.raises(DataError) as error:
        load_table(file)
    assert error.value.given == [str(tmp_path / "gone/4.png"), str(tmp_path / "oak s/3.png")]
    (tmp_path / "elm s" / "1.png").write_bytes(b"no image")
    split = load(DataConfig(source="table", root=file, on_bad_image="skip"))
    reasons = {Path(line.partition(": ")[0]).name: line.partition(": ")[2] for line in split.skipped}
    assert reasons.pop("1.png").startswith("its content is no image")
    assert reasons == dict.fromkeys(("3.png", "4.png"), "there is no such file")
    assert len(split.train) + len(split.test) == 7
    file.write_text(listed(("gone.png", "elm"), heading="path,label"))
    assert "there is no such file" in str(refused(file, SKIP).given)


def refused(file: Path, settings: ReadSettings | None = None) -> DataError:
    with pytest.raises(DataError) as error:
        load_table(file, settings)
    assert error.value.subject == str(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "the columns none at all"),
        ("file,label\na.png,x\n", "the columns 'file', 'label'"),
        ("path,label\n", "no rows"),
        ("path,label\na.png,x\n\nb.png\n", "no label in row 2"),
        ("path,label\n,x\n", "no path in row 1"),
        ("path,label,split\na.png,x,\n", "no split in row 1"),
        ("path,label,split\na.png,x,train\nb.png,x,val\n", "the split 'val' in row 2"),
        ("path,label,split\na.png,x,train\nb.png,x,query\n", "the splits query, train"),
        ("path,label\na.png,x\nb.png,x\n./a.png,y\n", "./a.png both in row 1 and in row 3"),
        ("path,label,split\na.png,x,train\nb.png,y,train\nc.png,y,test\n", "1 class both in train and"),
        (
            "path,label,split\na.png,x,train\nb.png,y,train\nc.png,z,query\nd.png,x,gallery\n",
            "another part, such as x",
        ),
        ("path,label\n\udcff,x\n", "read as text"),
        ("path,label,Label\na.png,x,y\n", "2 columns label"),
        ("path,label\na.png,x\nb,1.png,x\n", "3 cells in line 3, and 2 in the first"),
        ('path,label\na.png,"x\nb.png,y\n', "unexpected end of data"),
        ("path,label\na\0/1.png,x\n", "NUL character in the path of row 1"),
    ],
)
def test_malformed(tmp_path: Path, text: str, fact: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert fact in str(refused(tmp_path / "t.csv"))


def test_no_table(tmp_path: Path) -> None:
    for config in (DataConfig(source="table"), DataConfig(source="table", root=tmp_path)):
        with pytest.raises(InputError) as error:
            load(config)
        assert error.value.subject == "data.root"
    refused(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"nothing")
    refused(tmp_path / "t.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a", None], "label": [1, 2]}), tmp_path / "t.parquet")
    assert refused(tmp_path / "t.parquet").given == "has no path in row 2"


def test_an_image_is_found_twice_however_its_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(f"path,label\na.png,x\n{tmp_path}/a.png,y\n")
    assert "both in row 1 and in row 2" in str(refused(Path("t.csv")).given)


@pytest.mark.parametrize(
    ("columns", "fact"),
    [
        ({"path": ["a.png", "b.png"], "label": [1.0, float("nan")]}, "label holds nan"),
        ({"path": [b"a.png", b"b.png"], "label": [1, 2]}, "path holds binary"),
        ({"path": ["a.png", "b.png"], "label": [["x"], ["y"]]}, "label holds list"),
    ],
)
def test_columns_of_another_kind(tmp_path: Path, columns: dict[str, list[object]], fact: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    assert fact in str(refused(tmp_path / "t.parquet"))


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["path", "label", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert refused(tmp_path / "t.parquet").given == ["label"]


def test_names_that_a_person_takes_for_one_are_noted(tmp_path: Path) -> None:
    rows = [(f"{n}.png", label) for n, label in enumerate(("Cat", "cat", "caf\u00e9", "cafe\u0301") * 2)]
    put(tmp_path, rows)
    (tmp_path / "t.csv").write_text(listed(*rows, heading="path,label"))
    (note,) = load_table(tmp_path / "t.csv").notes
    assert note.startswith(
        "classes whose names differ only in case, blanks or accents are apart: 'Cat' and 'cat', "
    )
