from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_images import Numbered, names_of, numbered

from tuplet.data.splits import Split, describe, halves, hold_out
from tuplet.errors import DataError, SettingsError


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(2, 60), st.floats(0.01, 0.99), st.one_of(st.none(), st.integers(0, 2**40)))
def test_halves_share_nothing_and_lose_nothing(count: int, fraction: float, seed: int | None) -> None:
    names = [f"class {number}" for number in range(count)]
    train, test = halves(names, train_fraction=fraction, seed=seed)
    assert sorted(train + test) == sorted(names)
    assert train
    assert test
    assert abs(len(train) - count * fraction) <= 1
    assert list(train) == [name for name in names if name in train]
    assert halves(names, train_fraction=fraction, seed=seed) == (train, test)


def test_halves_without_seed_takes_the_first() -> None:
    assert halves("abcdef", train_fraction=0.5, seed=None) == (("a", "b", "c"), ("d", "e", "f"))


def test_halves_seed_decides() -> None:
    names = [str(number) for number in range(30)]
    assert len({halves(names, train_fraction=0.5, seed=seed)[0] for seed in range(5)}) == 5


def test_halves_are_pinned() -> None:
    assert halves("abcdef", train_fraction=0.5, seed=0) == (("b", "c", "d"), ("a", "e", "f"))


def test_halves_of_too_few_classes_or_no_share() -> None:
    for names in ([], ["a"]):
        with pytest.raises(DataError) as error:
            halves(names, train_fraction=0.5, seed=None)
        assert error.value.given == len(names)
    with pytest.raises(SettingsError) as setting:
        halves("abc", train_fraction=1.0, seed=None)
    assert (setting.value.subject, setting.value.given) == ("data.train_fraction", 1.0)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=8, max_size=40), st.integers(2, 4), st.integers(0, 99))
def test_folds_hold_every_class_out_once(labels: list[int], num_folds: int, seed: int) -> None:
    table = numbered(*labels)
    if len(set(labels)) < 2 * num_folds:
        with pytest.raises(DataError):
            hold_out(table, fold=0, num_folds=num_folds, seed=seed)
        return
    folds = [hold_out(table, fold=fold, num_folds=num_folds, seed=seed) for fold in range(num_folds)]
    for train, validation in folds:
        assert not set(train.class_names) & set(validation.class_names)
        assert sorted(names_of(train) + names_of(validation)) == sorted(names_of(table))
        assert set(train.labels.tolist()) == set(range(train.num_classes))
    held = [name for _, validation in folds for name in validation.class_names]
    assert sorted(held) == sorted(table.class_names[label] for label in set(labels))
    sizes = [validation.num_classes for _, validation in folds]
    assert max(sizes) - min(sizes) <= 1
    again = hold_out(table, fold=1, num_folds=num_folds, seed=seed)[1]
    assert names_of(again) == names_of(folds[1][1])


def test_another_seed_holds_out_other_classes() -> None:
    table = numbered(*range(12))
    held = {hold_out(table, fold=0, num_folds=3, seed=seed)[1].class_names for seed in range(6)}
    assert len(held) > 1


def test_describe() -> None:
    split = Split(
        numbered(0, 0, 0, 1, 1, 1, 1), numbered(0, 0, names="xyz"), ("p.png: it is empty",), ("beware",)
    )
    assert describe(split).split("\n") == [
        "             images  classes  images a class (min / median / max)",
        "train             7        2  3 / 3.5 / 4",
        "test              2        1  2 / 2 / 2",
        "skipped           1           the first: p.png: it is empty",
        "note: beware",
    ]


def test_describe_names_what_is_measured() -> None:
    split = Split(numbered(0), numbered(0, names="x"))
    assert describe(split, measured="validation").splitlines()[2].split()[0] == "validation"


def test_describe_an_empty_table() -> None:
    assert "0 / 0 / 0" in describe(Split(numbered(0, 1), numbered()))


def test_split_refuses_shared_classes() -> None:
    with pytest.raises(DataError) as error:
        Split(numbered(0, 1), numbered(0, 1, names="bz"))
    assert error.value.given == ["b"]


def test_describe_queries_and_gallery() -> None:
    queries, gallery = (Numbered(np.array(labels), ["x", "y", "z"]) for labels in ([0, 0, 2], [1, 2, 2]))
    lines = describe(Split(numbered(0, 0, 1), queries, gallery=gallery)).splitlines()
    assert lines[2:] == [
        "query             3        2  1 / 1.5 / 2",
        "gallery           3        2  1 / 1.5 / 2",
    ]


def test_split_wants_one_numbering_for_queries_and_gallery() -> None:
    with pytest.raises(DataError) as error:
        Split(numbered(0, 1), numbered(0, 1, names="xy"), gallery=numbered(0, 2, names="xyz"))
    assert (error.value.given, error.value.wanted) == (3, 2)
