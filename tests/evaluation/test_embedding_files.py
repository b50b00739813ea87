from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuplet.data.label_files import read_labels
from tuplet.errors import DataError, MissingExtraError, SettingsError
from tuplet.evaluation.embedding_files import (
    LabelledEmbeddings,
    read_embeddings,
    with_shared_classes,
    write_embeddings,
)

X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
Y = np.array([4, 4, -2, 7, 7, -2])
WORDS = ["oak", "oak", "elm", "ash", "ash", "elm"]


def labels_by_name(content: LabelledEmbeddings) -> list[str]:
    assert content.class_names is not None
    return [content.class_names[label] for label in content.labels]


def refused(path: Path, labels: Path | None = None) -> str:
    """Return what is said of a file, in one line that names it."""
    with pytest.raises(DataError) as error:
        read_embeddings(path, labels)
    assert error.value.subject in (str(path), str(labels))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", ">f4"])
def test_npy_is_mapped_and_needs_labels(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, X.astype(kind))
    np.save(tmp_path / "y.npy", Y)
    found = read_embeddings(path, tmp_path / "y.npy")
    np.testing.assert_array_equal(found.embeddings, X.astype(kind))
    np.testing.assert_array_equal(found.labels, Y)
    assert (found.names, found.class_names) == (None, None)
    assert isinstance(found.embeddings.base, np.memmap)
    found.embeddings[0, 0] = 99.0  # in memory only
    np.testing.assert_array_equal(np.load(path), X.astype(kind))
    assert "has no labels; want them in a second file" in refused(path)


@pytest.mark.parametrize(
    ("name", "text", "labels", "classes"),
    [
        ("y.txt", "3\n-1\n3\n", [3, -1, 3], None),
        ("y.txt", "oak tree\r\nelm\r\noak tree", [1, 0, 1], ("elm", "oak tree")),
        ("y.txt", "007\n7\n7\n\n", [0, 1, 1], ("007", "7")),
        ("y.csv", 'oak\n"elm, wych"\noak\n', [1, 0, 1], ("elm, wych", "oak")),
        ("y.csv", "path,Label\na.png,8\nb.png,9\nc.png,8\n", [8, 9, 8], None),
        ("y.csv", "\ufefflabel\nx\ny\nx\n", [0, 1, 0], ("x", "y")),
    ],
)
def test_labels_as_text(
    tmp_path: Path, name: str, text: str, labels: list[int], classes: tuple[str, ...] | None
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    found, names = read_labels(tmp_path / name)
    assert found.tolist() == labels
    assert names == classes


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("y.txt", b"a\n\nb\n", "line 2"),
        ("y.txt", b"", "no labels"),
        ("y.txt", b"\xff\xfe\x00", "as text"),
        ("y.csv", b"label,split\na,x\n,y\n", "line 3"),
        ("y.csv", b"oak,1\nelm,2\n", "2 columns, 'oak', '1'"),
        ("y.json", b"[1, 2]", "by its name"),
        ("y.npy", b"junk", "array of numbers, or of strings"),
        ("y.npy", Y.astype(float), "float64"),
        ("y.npy", Y[None], "[1, 6]"),
        ("y.npy", np.array([2**63], dtype=np.uint64), "2^63"),
    ],
)
def test_labels_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes | np.ndarray, fact: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content)
    with pytest.raises(DataError) as error:
        read_labels(tmp_path / name)
    assert error.value.subject == str(tmp_path / name)
    assert fact in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["U", "S"])
def test_npy_labels_of_strings(tmp_path: Path, kind: str) -> None:
    np.save(tmp_path / "y.npy", np.array(WORDS, dtype=kind))
    labels, names = read_labels(tmp_path / "y.npy")
    assert names == ("ash", "elm", "oak")
    assert [names[label] for label in labels] == WORDS


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("named", [True, False])
def test_what_is_written_is_read(tmp_path: Path, ending: str, kind: str, named: bool) -> None:
    path = tmp_path / f"x{ending}"
    names = tuple(f"{row}.png" for row in range(6)) if named else None
    # Not sorted, and one of them without an item.
    classes = ("oak", "yew", "elm", "ash") if named else None
    labels = np.array([0, 0, 2, 3, 3, 2]) if named else Y
    content = LabelledEmbeddings(X.astype(kind), labels, names, classes)
    write_embeddings(path, content)
    found = read_embeddings(path)
    assert found.embeddings.dtype == kind
    np.testing.assert_array_equal(found.embeddings, X.astype(kind))
    assert found.names == names
    if named:
        assert labels_by_name(found) == WORDS
    else:
        np.testing.assert_array_equal(found.labels, Y)
        assert found.class_names is None
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_labels_file_goes_before_the_files_own(tmp_path: Path) -> None:
    (tmp_path / "y.txt").write_text("\n".join(WORDS))
    for ending in (".npz", ".parquet"):
        path = tmp_path / f"x{ending}"
        write_embeddings(path, LabelledEmbeddings(X, np.arange(6), None, tuple("abcdef")))
        assert labels_by_name(read_embeddings(path, tmp_path / "y.txt")) == WORDS
    np.savez(tmp_path / "bare.npz", embeddings=X)
    pq.write_table(pa.table({"embedding": X.tolist()}), tmp_path / "bare.parquet")
    for ending in (".npz", ".parquet"):
        assert labels_by_name(read_embeddings(tmp_path / f"bare{ending}", tmp_path / "y.txt")) == WORDS
        assert "label" in refused(tmp_path / f"bare{ending}")


@pytest.mark.parametrize(
    "lists", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 3)]
)
@pytest.mark.parametrize("labels", [Y.astype(np.int16), WORDS, pa.array(WORDS).dictionary_encode()])
def test_parquet_from_elsewhere(tmp_path: Path, lists: pa.DataType, labels: object) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"extra": range(6), "label": labels, "embedding": pa.array(X.tolist(), lists)})
    pq.write_table(table, path, row_group_size=4)
    found = read_embeddings(path)
    np.testing.assert_array_equal(found.embeddings, X)
    if found.class_names is None:
        np.testing.assert_array_equal(found.labels, Y)
    else:
        assert labels_by_name(found) == WORDS


def test_parquet_with_a_column_a_dimension(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    wide = np.random.default_rng(1).standard_normal((6, 12))
    columns = {f"e{column}": wide[:, column] for column in (*range(11, -1, -1),)}
    pq.write_table(pa.table({"label": Y, "width2": range(6), **columns}), path)
    np.testing.assert_array_equal(read_embeddings(path).embeddings, wide)
    del columns["e5"]
    pq.write_table(pa.table({"label": Y, **columns}), path)
    assert "has columns e0 to e11 without e5" in refused(path)
    pq.write_table(pa.table({"label": Y, "e1": wide[:, 1], "f1": wide[:, 2]}), path)
    assert "has no column embedding, but label, e1, f1; want" in refused(path)


@pytest.mark.parametrize(
    ("columns", "fact"),
    [
        ({"label": WORDS}, "no column embedding, but label;"),
        ({"embedding": X.tolist(), "class": WORDS}, "no column label, but embedding, class;"),
        ({"embedding": [[1.0, 2.0], [3.0]], "label": [1, 1]}, "row 1 has 1 numbers and that in row 0 2"),
        ({"embedding": [[1.0], None], "label": [1, 1]}, "embedding is empty in row 1"),
        ({"embedding": [[1.0, 2.0], [3.0, None]], "label": [1, 1]}, "row 1 lacks a number"),
        ({"embedding": [[1.0], [2.0]], "label": ["a", None]}, "label is empty in row 1"),
        ({"embedding": [[1.0], [2.0]], "label": [0.5, 1.5]}, "double"),
        ({"embedding": [[1], [2]], "label": [1, 1]}, "list<"),
        ({"embedding": ["x", "y"], "label": [1, 1]}, "string"),
        ({"embedding": [[1.0], [np.nan]], "label": [1, 1]}, "row 1"),
        ({"embedding": [[], []], "label": [1, 1]}, "embedding"),
    ],
)
def test_malformed_parquet(tmp_path: Path, columns: dict[str, list[object]], fact: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert fact in refused(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("arrays", "fact"),
    [
        ({"features": X}, "no array embeddings, but labels, features;"),
        ({"embeddings": X, "labels": None}, "no array labels, but embeddings;"),
        ({"embeddings": X, "labels": Y[:5]}, "shape [5] for 6"),
        ({"embeddings": X[0]}, "shape [3]"),
        ({"embeddings": X[:0], "labels": Y[:0]}, "shape [0, 3]"),
        ({"embeddings": X.astype(int)}, "int64"),
        ({"embeddings": X.astype(np.longdouble)}, "want float16, float32 or float64"),
        ({"embeddings": np.where(np.isclose(X, X[4, 1]), np.inf, X)}, "row 4"),
        ({"embeddings": X, "names": np.array(["a"])}, "names are 1 for 6"),
        ({"embeddings": X, "class_names": np.array(["a"])}, "from -2 to 7; want 0..0"),
    ],
)
def test_malformed_npz(tmp_path: Path, arrays: dict[str, np.ndarray | None], fact: str) -> None:
    held = {name: array for name, array in ({"labels": Y} | arrays).items() if array is not None}
    np.savez(tmp_path / "x.npz", allow_pickle=False, **held)
    assert fact in refused(tmp_path / "x.npz")


class Trap:
    """Tells on whoever unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return sys.exit, ("it was unpickled",)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap = np.array([Trap()] * 6, dtype=object)
    np.save(tmp_path / "trap.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "trap.npz", embeddings=X, labels=trap)
    np.save(tmp_path / "x.npy", X)
    for path, labels in (("trap.npy", "trap.npy"), ("trap.npz", None), ("x.npy", "trap.npy")):
        said = refused(tmp_path / path, None if labels is None else tmp_path / labels)
        assert "nothing is ever unpickled" in said


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.parquet"])
@pytest.mark.parametrize("cut", [0, 10, 300])
def test_files_cut_short(tmp_path: Path, name: str, cut: int) -> None:
    path = tmp_path / name
    (tmp_path / "y.txt").write_text("\n".join(WORDS))
    if path.suffix == ".npy":
        np.save(path, np.tile(X, (1, 100)))
    else:
        write_embeddings(path, LabelledEmbeddings(np.tile(X, (1, 100)), Y))
    path.write_bytes(path.read_bytes()[:cut])
    assert "want" in refused(path, tmp_path / "y.txt")


def test_files_of_no_known_kind(tmp_path: Path) -> None:
    assert "want .npy, .npz or .parquet" in refused(tmp_path / "x.pt")
    assert "there is no such file" in refused(tmp_path / "x.npz")
    np.save(tmp_path / "x", X)
    (tmp_path / "x.npy").rename(tmp_path / "one.npz")
    assert "holds one array without a name" in refused(tmp_path / "one.npz")
    np.savez(tmp_path / "many", embeddings=X, labels=Y)
    (tmp_path / "many.npz").rename(tmp_path / "many.npy")
    assert "holds several arrays" in refused(tmp_path / "many.npy")
    content = LabelledEmbeddings(X, Y)
    for path, subject in (
        (tmp_path / "x.npy", tmp_path / "x.npy"),
        (tmp_path / "no" / "x.npz", tmp_path / "no"),
    ):
        with pytest.raises(SettingsError) as error:
            write_embeddings(path, content)
        assert error.value.subject == str(subject)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for action in (lambda: read_embeddings(path), lambda: write_embeddings(path, LabelledEmbeddings(X, Y))):
        with pytest.raises(MissingExtraError) as error:
            action()
        assert error.value.extra == "tables"
    assert path.read_bytes() == b""


def test_not_a_number_is_found_in_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuplet.evaluation.embedding_files._BLOCK_BYTES", 24)
    for row in range(6):
        spoilt = X.copy()
        spoilt[row, 2] = np.nan
        np.savez(tmp_path / "x.npz", embeddings=spoilt, labels=Y)
        assert f"in row {row};" in refused(tmp_path / "x.npz")


def test_classes_are_shared_by_name() -> None:
    queries = LabelledEmbeddings(X, np.array([0, 0, 1, 2, 2, 1]), None, ("oak", "elm", "ash"))
    gallery = LabelledEmbeddings(X[:2], np.array([0, 1]), None, ("ash", "yew"))
    a, b = with_shared_classes(queries, gallery)
    assert a.class_names == b.class_names == ("ash", "elm", "oak", "yew")
    assert labels_by_name(a) == WORDS
    assert labels_by_name(b) == ["ash", "yew"]
    numbered = LabelledEmbeddings(X, Y)
    assert with_shared_classes(numbered, numbered) == (numbered, numbered)
    for parts, subject in (((numbered, gallery), "queries"), ((queries, numbered), "gallery")):
        with pytest.raises(DataError) as error:
            with_shared_classes(*parts)
        assert error.value.subject == subject
