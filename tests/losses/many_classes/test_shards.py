"""Classes spread over gloo processes against one process, on the concatenated batch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from processes import gloo_group, in_processes

from tuplet.losses.hist import HISTLoss
from tuplet.losses.many_classes.shards import ClassShard, gather_batch
from tuplet.training.class_shards import load_rows, save_rows

N, D = 8, 16


@dataclass(frozen=True)
class Case:
    """One comparison; labels are any classes, or all the same one."""

    num_classes: int
    distance: str = "mahalanobis"
    num_layers: int = 2
    dtype: torch.dtype = torch.float64
    one_class: bool = False
    lambda_s: float = 1.0
    class_fraction: float = 1.0


CASES = [
    *(Case(103, distance, layers) for distance in ("mahalanobis", "manhattan") for layers in (1, 2, 3)),
    Case(103, "euclidean"),
    Case(103, "cosine", dtype=torch.float32),
    Case(103, dtype=torch.float32),
    Case(103, one_class=True, num_layers=1),
    Case(103, lambda_s=0.0),
    # Four processes keep 2, 2, 1 and none of five classes; of three, one each and none.
    Case(5),
    Case(3, dtype=torch.float32),
    Case(1),
]


def build(case, shard):
    torch.manual_seed(3)
    return HISTLoss(
        case.num_classes,
        D,
        hidden_dim=12,
        num_layers=case.num_layers,
        distance=case.distance,
        lambda_s=case.lambda_s,
        class_fraction=case.class_fraction,
        shard=shard,
    ).to(case.dtype)


def batch(case):
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(N, D, generator=generator, dtype=case.dtype)
    labels = torch.randint(case.num_classes, (N,), generator=generator)
    return embeddings, labels * 0 if case.one_class else labels


def errors(case, rank, ranks):
    """How far this process is from one process alone, relative to the norm of all gradients."""
    embeddings, labels = batch(case)
    embeddings.requires_grad_()
    whole = build(case, ClassShard(case.num_classes))
    part = build(case, ClassShard.of_group(case.num_classes))
    wanted = whole.terms(embeddings, labels)
    wanted.total.backward()
    mine = slice(rank * N // ranks, (rank + 1) * N // ranks)
    own = embeddings.detach()[mine].clone().requires_grad_()
    got = part.terms(*gather_batch(own, labels[mine]))
    got.total.backward()
    yield abs(got.distribution - wanted.distribution) / abs(wanted.distribution).clamp_min(1e-3)
    yield abs(got.total - wanted.total) / abs(wanted.total).clamp_min(1e-3)
    yield (own.grad / ranks - embeddings.grad[mine]).norm() / embeddings.grad.norm().clamp_min(1e-3)
    named = dict(whole.named_parameters())
    scale = torch.stack([p.grad.norm() for p in named.values() if p.grad is not None]).norm()
    rows = slice(part.shard.first, part.shard.first + part.shard.num_kept)
    for name, parameter in part.named_parameters():
        expected = named[name].grad
        if expected is None:
            assert parameter.grad is None
            continue
        assert torch.equal(parameter, named[name][rows] if name in part.class_parameters() else named[name])
        expected = expected[rows] if name in part.class_parameters() else expected
        yield (parameter.grad - expected).norm() / scale


def compare(rank, ranks, port, queue, folder):
    warnings.simplefilter("error")
    with gloo_group(rank, ranks, port):
        found = [[float(error.detach()) for error in errors(case, rank, ranks)] for case in CASES]
        sampled = build(Case(103, class_fraction=0.5), ClassShard.of_group(103))
        torch.manual_seed(rank)
        value = sampled.terms(*batch(Case(103))).total
        value.backward()
        moved = int((sampled.means.grad.abs().sum(dim=1) > 0).sum())
        shard = ClassShard.of_group(9)
        rows = load_rows(folder / "by one", shard)
        save_rows(folder / "by four", {name: 2 * value for name, value in rows.items()}, shard)
        queue.put((rank, found, float(value.detach()), moved, rows["means"].tolist()))


def test_four_processes_compute_what_one_does_and_read_and_write_its_rows(tmp_path):
    written = {"means": torch.arange(27.0).view(9, 3), "biases": torch.arange(9.0)}
    save_rows(tmp_path / "by one", written, ClassShard(9))
    results = in_processes(compare, 4, tmp_path)
    for rank, found, *_ in results:
        for case, worst in zip(CASES, map(max, found), strict=True):
            assert worst < (1e-12 if case.dtype == torch.float64 else 1e-5), (rank, case, worst)
    # With half of the classes in the sum, all agree on one loss, below that of all classes.
    _, _, values, moved, rows = zip(*results, strict=True)
    assert len(set(values)) == 1
    assert values[0] < float(build(Case(103), ClassShard(103)).terms(*batch(Case(103))).total.detach())
    assert moved == (13, 13, 13, 12)
    # Of nine classes the last process keeps none.
    assert [len(part) for part in rows] == [3, 3, 3, 0]
    assert [row for part in rows for row in part] == written["means"].tolist()
    read = load_rows(tmp_path / "by four", ClassShard(9))
    assert all(torch.equal(read[name], 2 * value) for name, value in written.items())


def test_first_values_are_those_of_the_whole_loss_for_any_number_of_processes():
    torch.manual_seed(5)
    whole = HISTLoss(2500, 4, hidden_dim=3, shard=ClassShard(2500))
    parts = []
    for rank in range(3):
        torch.manual_seed(5)
        parts.append(HISTLoss(2500, 4, hidden_dim=3, shard=ClassShard(2500, rank, 3)))
    for name in whole.class_parameters():
        rows = torch.cat([part.class_parameters()[name] for part in parts])
        assert torch.equal(rows, whole.class_parameters()[name])
    # He-normal, fan-out: the variance is 2 over the number of all classes.
    assert whole.means.std().item() == pytest.approx((2 / 2500) ** 0.5, rel=0.05)
    assert not torch.equal(whole.means[:1024], whole.means[1024:2048])
    assert whole.hgnn.output_parameters()[0].abs().max() <= 3**-0.5


def test_shares_follow_each_other_and_cover_all_classes():
    for num_classes in (1, 3, 4, 5, 103):
        shards = [ClassShard(num_classes, rank, 4) for rank in range(4)]
        classes = [c for shard in shards for c in range(shard.first, shard.first + shard.num_kept)]
        assert classes == list(range(num_classes))
        expected = [len(chunk) for chunk in torch.arange(num_classes).chunk(4)]
        assert [shard.num_kept for shard in shards][: len(expected)] == expected
