"""Every refusal of the HIST loss is a ValueError that says what was got and what is wanted."""

from __future__ import annotations

import math

import pytest
import torch

from tuplet.errors import InputError
from tuplet.losses.hist import HISTLoss

C, D = 5, 4


def batch(n=6):
    torch.manual_seed(0)
    return torch.randn(n, D), torch.arange(n) % C


def with_value(row, value):
    embeddings = batch()[0]
    embeddings[row, 2] = value
    return embeddings


def labels_with(value):
    labels = batch()[1]
    labels[3] = value
    return labels


@pytest.mark.parametrize(
    ("embeddings", "labels", "got", "wanted"),
    [
        (batch()[0], labels_with(5), "5", r"0\.\.4"),
        (batch()[0], labels_with(-1), "-1", r"0\.\.4"),
        (batch()[0], labels_with(1000), "1000", r"0\.\.4"),
        (batch()[0][:, :3], batch()[1], r"\[6, 3\]", r"\[N, 4\]"),
        (batch()[0][0], batch()[1], r"\[4\]", r"\[N, 4\]"),
        (batch()[0][None], batch()[1], r"\[1, 6, 4\]", r"\[N, 4\]"),
        (with_value(2, math.nan), batch()[1], "NaN or infinity, first in row 2", "finite"),
        (with_value(5, math.inf), batch()[1], "NaN or infinity, first in row 5", "finite"),
        (with_value(0, -math.inf), batch()[1], "NaN or infinity, first in row 0", "finite"),
        (*batch(0), "empty", "at least one"),
        (batch()[0], batch()[1][:5], r"\[5\]", r"\[6\]"),
        (batch()[0], batch(7)[1], r"\[7\]", r"\[6\]"),
        (batch()[0], batch()[1][:, None], r"\[6, 1\]", r"\[6\]"),
        (batch()[0], batch()[1].float(), "float32", r"integers in 0\.\.4"),
        (batch()[0], batch()[1] > 2, "bool", r"integers in 0\.\.4"),
    ],
)
@pytest.mark.parametrize("lambda_s", [0.0, 1.0])
def test_refused_batches(lambda_s, embeddings, labels, got, wanted):
    loss = HISTLoss(C, D, hidden_dim=3, lambda_s=lambda_s)
    for call in (loss, loss.terms):
        with pytest.raises(InputError, match=f"{got}.*{wanted}") as raised:
            call(embeddings, labels)
        assert isinstance(raised.value, ValueError)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("num_layers", [2, 3])
def test_a_batch_of_one_cannot_train_batch_norm(num_layers):
    loss = HISTLoss(C, D, hidden_dim=3, num_layers=num_layers)
    before = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    with pytest.raises(InputError, match=r"1 embedding; want 2 or more.*BatchNorm"):
        loss(*batch(1))
    assert all(torch.equal(buffer, before[name]) for name, buffer in loss.named_buffers())


@pytest.mark.parametrize("name", ["tau", "alpha"])
@pytest.mark.parametrize("value", [0, 0.0, -1.5, math.inf, math.nan])
def test_refused_temperatures_and_decays(name, value):
    with pytest.raises(InputError, match=rf"{name} is {value}; want .*> 0"):
        HISTLoss(C, D, **{name: value})


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_refused_weights(value):
    with pytest.raises(InputError, match=rf"lambda_s is {value}; want .*>= 0"):
        HISTLoss(C, D, lambda_s=value)


@pytest.mark.parametrize("name", ["num_classes", "embedding_dim", "hidden_dim", "num_layers"])
@pytest.mark.parametrize("value", [0, -3])
def test_refused_sizes(name, value):
    with pytest.raises(InputError, match=rf"{name} is {value}; want 1 or more"):
        HISTLoss(**({"num_classes": C, "embedding_dim": D} | {name: value}))


def test_an_unknown_distance():
    with pytest.raises(InputError, match=r"'hamming'; want one of mahalanobis, euclidean, cosine, manhattan"):
        HISTLoss(C, D, distance="hamming")
