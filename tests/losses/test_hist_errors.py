"""What the HIST loss refuses: one line that names the argument, as a ValueError."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tuplet.errors import DataError, SettingsError
from tuplet.losses.hgnn import HGNN
from tuplet.losses.hist import HISTLoss
from tuplet.losses.rivals import RivalLoss

C, D = 5, 4


def batch(n=6):
    torch.manual_seed(0)
    return torch.randn(n, D), torch.arange(n) % C


def changed(tensor, place, value):
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


EMBEDDINGS, LABELS = batch()
REFUSED = [
    (EMBEDDINGS, changed(LABELS, 3, 5), "labels", (0, 5)),
    (EMBEDDINGS, changed(LABELS, 3, -1), "labels", (-1, 4)),
    (EMBEDDINGS, changed(LABELS, 3, 1000), "labels", (0, 1000)),
    (EMBEDDINGS[:, :3], LABELS, "embeddings", [6, 3]),
    (EMBEDDINGS[0], LABELS, "embeddings", [4]),
    (EMBEDDINGS[None], LABELS, "embeddings", [1, 6, 4]),
    (changed(EMBEDDINGS, (2, 2), math.nan), LABELS, "embeddings", 2),
    (changed(EMBEDDINGS, (5, 2), math.inf), LABELS, "embeddings", 5),
    (changed(EMBEDDINGS, (0, 2), -math.inf), LABELS, "embeddings", 0),
    (*batch(0), "embeddings", 0),
    (EMBEDDINGS, LABELS[:5], "labels", [5]),
    (EMBEDDINGS, batch(7)[1], "labels", [7]),
    (EMBEDDINGS, LABELS[:, None], "labels", [6, 1]),
    (EMBEDDINGS, LABELS.float(), "labels", torch.float32),
    (EMBEDDINGS, LABELS > 2, "labels", torch.bool),
    # What people pass first, with how to convert it.
    (EMBEDDINGS, LABELS.tolist(), "labels", list),
    (EMBEDDINGS, LABELS.numpy(), "labels", np.ndarray),
    (EMBEDDINGS.numpy(), LABELS, "embeddings", np.ndarray),
]


@pytest.mark.parametrize(("embeddings", "labels", "subject", "given"), REFUSED)
@pytest.mark.parametrize("lambda_s", [0.0, 1.0])
def test_refused_batches(lambda_s, embeddings, labels, subject, given):
    loss = HISTLoss(C, D, hidden_dim=3, lambda_s=lambda_s)
    for call in (loss, loss.terms, RivalLoss("arcface", C, D)):
        with pytest.raises(DataError) as caught:
            call(embeddings, labels)
        assert isinstance(caught.value, ValueError)
        assert (caught.value.subject, caught.value.given) == (subject, given)
        assert "\n" not in str(caught.value)
        if given in (list, np.ndarray):
            assert f"torch.as_tensor({subject})" in str(caught.value)


@pytest.mark.parametrize("make", [lambda: HISTLoss(C, D, hidden_dim=3), lambda: RivalLoss("triplet", C, D)])
def test_embeddings_labels_and_loss_are_on_one_device(make):
    elsewhere = torch.device("meta")
    for loss, embeddings, labels, subject in (
        (make(), EMBEDDINGS.to(elsewhere), LABELS.to(elsewhere), "embeddings"),
        (make(), EMBEDDINGS, LABELS.to(elsewhere), "labels"),
        (make().to(elsewhere), EMBEDDINGS, LABELS, "embeddings"),
    ):
        with pytest.raises(DataError) as caught:
            loss(embeddings, labels)
        given = embeddings if subject == "embeddings" else labels
        assert (caught.value.subject, caught.value.given) == (subject, given.device)


@pytest.mark.parametrize("num_layers", [2, 3])
def test_a_batch_of_one_cannot_train_batch_norm(num_layers):
    loss = HISTLoss(C, D, hidden_dim=3, num_layers=num_layers)
    before = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    with pytest.raises(DataError) as caught:
        loss(*batch(1))
    assert (caught.value.given, caught.value.wanted) == (1, 2)
    assert all(torch.equal(buffer, before[name]) for name, buffer in loss.named_buffers())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("tau", "alpha") for value in (0, 0.0, -1.5, math.inf, math.nan, "1")),
        *(("lambda_s", value) for value in (-0.1, math.inf, math.nan, None)),
        *(("class_fraction", value) for value in (0, 0.0, -0.1, 1.5, math.nan, math.inf, "half", None)),
        *(
            (name, value)
            for name in ("num_classes", "embedding_dim")
            for value in (0, -3, 2.5, np.float64(4), True, np.True_)
        ),
        *((name, value) for name in ("hidden_dim", "num_layers") for value in (0, -3, 2.5, torch.ones(1))),
        ("tau", True),
        ("distance", "hamming"),
        ("implementation", "fast"),
    ],
)
def test_refused_settings(name, value):
    with pytest.raises(SettingsError) as caught:
        HISTLoss(**({"num_classes": C, "embedding_dim": D} | {name: value}))
    assert (caught.value.subject, caught.value.given) == (name, pytest.approx(value, nan_ok=True))


class Index:
    """A whole number of another library: it has nothing but `__index__`."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def test_whole_numbers_are_what_python_takes_for_an_index():
    assert HISTLoss(Index(C), Index(D)).num_classes == C


def test_labels_that_are_names_are_told_how_to_become_numbers():
    embeddings = torch.zeros(2, D)
    for labels in (["oak", "elm"], [b"oak", b"elm"], np.array(["oak", "elm"]), ("oak", "elm")):
        with pytest.raises(DataError) as caught:
            HISTLoss(C, D)(embeddings, labels)
        assert caught.value.wanted == (
            "a torch.Tensor, such as torch.as_tensor(numpy.unique(labels, return_inverse=True)[1])"
        )


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_embeddings_are_floats(kind):
    with pytest.raises(DataError) as caught:
        HISTLoss(C, D)(torch.ones(2, D).to(kind), torch.tensor([0, 1]))
    assert (caught.value.subject, caught.value.given) == ("embeddings", kind)


@pytest.mark.parametrize("number", [np.int64, np.uint8, torch.tensor], ids=lambda kind: kind.__name__)
def test_sizes_and_settings_may_be_numbers_of_numpy_and_torch(number):
    sizes = {
        "num_classes": number(C),
        "embedding_dim": number(D),
        "hidden_dim": number(3),
        "num_layers": number(2),
    }
    loss = HISTLoss(
        **sizes, tau=np.float32(16), alpha=number(1), lambda_s=number(1), class_fraction=np.float64(1)
    )
    torch.manual_seed(0)
    loss = HISTLoss(**sizes, tau=np.float32(16), alpha=number(1))
    torch.manual_seed(0)
    plain = HISTLoss(C, D, hidden_dim=3, num_layers=2, tau=16.0, alpha=1)
    assert torch.equal(loss(*batch()), plain(*batch()))
    assert [type(value) for value in (loss.num_classes, loss.tau, loss.alpha)] == [int, float, int]
    assert HGNN(number(D), number(3), number(C)).output_parameters()[0].shape == (C, 3)
    rival = RivalLoss("soft-triple", number(C), number(D), scale=np.float32(4), num_centers=number(2))
    assert rival(*batch()).isfinite()
