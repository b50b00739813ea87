from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tuplet.errors import InputError
from tuplet.evaluation.embedding_files import LabelledEmbeddings
from tuplet.evaluation.items import require_same_items


def items(names, labels, class_names=("elm", "oak")):
    labels = np.array(labels)
    return LabelledEmbeddings(np.zeros((len(labels), 2), np.float32), labels, names, class_names)


HERE = items(("/here/test/elm/1.jpg", "/here/test/oak/1.jpg", "/here/test/oak/2.jpg"), [0, 1, 1])


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, names=("elm/1.jpg", "oak/1.jpg", "oak/2.jpg")),
        replace(HERE, names=("C/x/elm/1.jpg", "C/x/oak/1.jpg", "C/x/oak/2.jpg")),
        items(HERE.names, [2, 0, 0], ("oak", "ash", "elm")),
        items(HERE.names, [5, -3, -3], None),
        replace(HERE, embeddings=np.ones((3, 7))),
    ],
)
def test_the_same_items_elsewhere_or_numbered_otherwise(other):
    assert require_same_items(HERE, other) == require_same_items(other, HERE) == ()


def test_without_names_the_order_is_taken_on_trust():
    (line,) = require_same_items(HERE, replace(HERE, names=None))
    assert "taken on trust" in line


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            replace(HERE, names=("/x/elm/1.jpg", "/x/oak/2.jpg", "/x/oak/1.jpg")),
            r"item 1 is /here/test/oak/1.jpg in A and /x/oak/2.jpg in B; want both models on the same images",
        ),
        (
            items(("/x/elm/1.jpg", "/x/oak/1.jpg"), [0, 1]),
            r"^A has 3 items and B 2; want both models on the same images",
        ),
        (
            items(("/x/elm/1.jpg", "/x/oak/0.jpg", "/x/oak/1.jpg", "/x/oak/2.jpg"), [0, 1, 1, 1]),
            r"A has 3 items and B 4; item 1 is /here/test/oak/1.jpg in A and /x/oak/0.jpg in B",
        ),
        (
            replace(HERE, class_names=("elm", "ash")),
            r"item 1, /here/test/oak/1.jpg, is of class oak in A and ash in B; want both",
        ),
        (
            items(None, [4, 6, 8], None),
            r"item 2, /here/test/oak/2.jpg, is of class 1 in A and 8 in B, unlike items before it",
        ),
        (items(None, [4, 4, 6], None), r"item 1, .* is of class 1 in A and 4 in B, unlike items before it"),
    ],
)
def test_the_first_item_that_differs_is_named(other, message):
    with pytest.raises(InputError, match=message):
        require_same_items(HERE, other)
