from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tuplet.errors import DataError
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
    ("other", "row", "named"),
    [
        (
            replace(HERE, names=("/x/elm/1.jpg", "/x/oak/2.jpg", "/x/oak/1.jpg")),
            1,
            "item 1 is /here/test/oak/1.jpg in A and /x/oak/2.jpg in B",
        ),
        (items(("/x/elm/1.jpg", "/x/oak/1.jpg"), [0, 1]), None, "A has 3 items and B 2"),
        (
            items(("/x/elm/1.jpg", *(f"/x/oak/{row}.jpg" for row in range(3))), [0, 1, 1, 1]),
            1,
            "/x/oak/0.jpg",
        ),
        (replace(HERE, class_names=("elm", "ash")), 1, "of class oak in A and ash in B"),
        (items(None, [4, 6, 8], None), 2, "of class 1 in A and 8 in B, unlike items before it"),
        (items(None, [4, 4, 6], None), 1, "of class 1 in A and 4 in B, unlike items before it"),
    ],
)
def test_the_first_item_that_differs_is_named(other, row, named):
    with pytest.raises(DataError) as error:
        require_same_items(HERE, other)
    assert error.value.given == row
    assert named in str(error.value)
