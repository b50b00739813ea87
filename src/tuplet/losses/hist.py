"""The HIST loss: Equations 1-6 in paper order as pure functions, then the module that holds parameters.

Lim, Yun, Park, Choi, "Hypergraph-Induced Semantic Tuplet Loss for Deep Metric Learning", CVPR 2022;
equation numbers as in Yuan and Le-Phuoc, ReScience C 9.2 #8, 2023.

Sizes: N samples in a batch, C classes, D embedding width, h hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, assert_never, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tuplet.config import Distance, HypergraphConfig, Implementation, Variance
from tuplet.config.checks import number, positive_number, require, require_choice, whole_number
from tuplet.errors import DataError, SettingsError
from tuplet.losses.base import LossTerms, MetricLoss, leading_widths
from tuplet.losses.hgnn import HGNN, propagation_matrix
from tuplet.losses.many_classes.head import class_head, draw_classes
from tuplet.losses.many_classes.memory import ReusedMemory
from tuplet.losses.many_classes.scores import (
    ClassScores,
    Inputs,
    LinearScores,
    MahalanobisScores,
    PlainScores,
    clipped,
    without_autocast,
)
from tuplet.losses.many_classes.shards import ClassShard, initialise_rows, sharded_class_head
from tuplet.losses.own_share import alpha_of_share, hyperedge_weights

FEW_PARAMETERS = 1 << 19
"""Entries of the means, C x D, up to which `auto` is plain: below, the chunked loss's overhead outweighs
what it saves."""


def class_distances(
    embeddings: Float[Tensor, "N D"],
    means: Float[Tensor, "C D"],
    log_variances: Float[Tensor, "C D"],
    *,
    distance: Distance = "mahalanobis",
) -> Float[Tensor, "N C"]:
    """Compute the distance of each sample to each class distribution, the d2 of Eq. 2 and 3.

    Embeddings and means are L2-normalised first, so the length of neither matters; a zero vector stays zero.

    Args:
        embeddings: one row per sample, any finite length.
        means: one row per class, any finite length.
        log_variances: log sigma2, clipped to [0, 6]; mahalanobis only.
        distance: mahalanobis (squared, in [0, 4]), euclidean (squared, in [0, 4]), cosine (1 - x.mu, in
            [0, 2]) or manhattan (in [0, 2 sqrt(D)]).
    Returns: distances, unitless, >= 0, in float32 or float64, even under autocast.
    References: Lim et al., CVPR 2022; the clip to [0, 6] is their released code's.
    """
    width = _wide_dtype(embeddings, means)
    # The loss depends on small differences between distances, which tau = 32 then multiplies. bfloat16 has 8
    # significant bits and would round them away.
    with without_autocast(embeddings.device):
        return _distances_of_unit_rows(unit_rows(embeddings.to(width)), means, log_variances, distance)


def _wide_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _scores_of_unit_rows(x: Tensor, means: Tensor, *, tau: float, distance: Distance) -> Tensor:
    return -tau * _distances_of_unit_rows(x, means, None, distance)


def _distances_of_unit_rows(
    x: Tensor, means: Tensor, log_variances: Tensor | None, distance: Distance
) -> Tensor:
    mu = unit_rows(means.to(x.dtype))
    # sum_k (x_k - mu_k)^2 p_k, with p = 1/sigma2, would take an N x C x D tensor to subtract first.
    # Multiplied out it is (x x).p - 2 x.(mu p) + sum_k mu_k^2 p_k: two matrix products and C numbers.
    # For vectors of any length this loses precision: large squares cancel, and a small distance keeps few
    # correct digits. Here |x| = |mu| = 1 and p <= 1: no term exceeds 2, so the error is about one rounding
    # of 1.
    if distance == "mahalanobis":
        assert log_variances is not None
        precision = torch.exp(-clipped(log_variances.to(x.dtype)))
        scaled = mu * precision
        distances = torch.addmm((mu * scaled).sum(dim=1), x * x, precision.T)
        distances = torch.addmm(distances, x, scaled.T, alpha=-2.0)
    elif distance == "euclidean":
        distances = (x * x).sum(dim=1, keepdim=True) - 2.0 * (x @ mu.T) + (mu * mu).sum(dim=1)
    elif distance == "cosine":
        distances = 1.0 - x @ mu.T
    elif distance == "manhattan":
        distances = torch.cdist(x, mu, p=1.0)
    else:
        assert_never(distance)
    # Rounding may turn a distance of zero slightly negative; Eq. 3 would then give a weight above 1.
    return distances.clamp_min(0.0)


def unit_rows(vectors: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Scale each row to length one; a row of zeros stays zero and receives a bounded gradient.

    Args:
        vectors: finite rows of any length.
    """
    # Dividing by the largest entry first keeps the squares from overflow and underflow. It cancels in the
    # result, so it needs no gradient. A row of zeros is divided by 1, then by 1/2: it stays zero, and its
    # gradient is twice the incoming one instead of infinite.
    largest = torch.linalg.vector_norm(vectors.detach(), torch.inf, dim=1, keepdim=True)
    zero = largest == 0
    scaled = vectors / (largest + zero)
    lengths = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    units: Tensor = scaled / torch.add(lengths, zero, alpha=0.5)
    return units


def distribution_loss(
    distances: Float[Tensor, "N C"], labels: Int[Tensor, " N"], *, tau: float, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Compute the mean negative log-likelihood of each sample's own class distribution (Eq. 1).

    Args:
        distances: of each sample to each class, >= 0.
        labels: class of each sample, in 0..C-1.
        tau: temperature, > 0.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1); the paper has
            none.
    Returns: a scalar >= 0. No sample is ever dropped: a probability that underflows keeps its logarithm.
    References: Lim et al., CVPR 2022; Yuan and Le-Phuoc, 2023, Eq. 1.
    """
    if label_smoothing > 0:
        return F.cross_entropy(-tau * distances, labels, label_smoothing=label_smoothing)
    return F.nll_loss(assignment_log_probabilities(distances, tau=tau), labels)


def assignment_log_probabilities(distances: Float[Tensor, "N C"], *, tau: float) -> Float[Tensor, "N C"]:
    """Compute the log-probability that a class distribution gave a sample, log P (Eq. 2).

    Args:
        distances: of each sample to each class, >= 0.
        tau: temperature, > 0.
    Returns: values <= 0 whose exponentials sum to 1 over the classes.
    References: Lim et al., CVPR 2022; Yuan and Le-Phuoc, 2023, Eq. 2.
    """
    # Not softmax followed by log: tau d2 reaches 32 * 4 = 128, exp(-128) is 0 in float32, and log(0) is -inf.
    # The samples farthest from their class, which have the most to correct, would get NaN or no gradient.
    return F.log_softmax(-tau * distances, dim=1)


def incidence_matrix(
    distances: Float[Tensor, "N C"], labels: Int[Tensor, " N"], *, alpha: float
) -> Float[Tensor, "N N"]:
    """Compute the weight of each sample in the semantic tuplet of the class of each sample (Eq. 3-4).

    Args:
        distances: of each sample to each class, >= 0.
        labels: class of each sample, in 0..C-1.
        alpha: decay per unit of distance, > 0; any finite number as a control.
    Returns:
        column j is the tuplet of the class of sample j. Entry (i, j) is 1 where sample i is of that class,
        else exp(-alpha d) in (0, 1], or >= 1 where alpha <= 0. Samples of one class have equal columns.
    References: Lim et al., CVPR 2022; Yuan and Le-Phuoc, 2023, Eq. 3-4.
    """
    return _incidence_by_sample(distances.index_select(1, labels), labels, alpha)


def _incidence_by_sample(distances: Float[Tensor, "N N"], labels: Tensor, alpha: float | Tensor) -> Tensor:
    # Each class has one semantic tuplet, which is one hyperedge. Samples of the class have weight 1, others a
    # weight that falls with their distance to it. A sample near another class is a hard negative: its weight
    # there is large, so the HGNN mixes its features with those of that class and has to separate them.
    own = labels[:, None] == labels[None, :]
    return torch.exp(-alpha * distances).masked_fill(own, 1.0)


def hypergraph_loss(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Compute the mean cross entropy between the labels and the hypergraph network's output (Eq. 5).

    Args:
        logits: output of the HGNN, one column per class.
        labels: class of each sample, in 0..C-1.
    Returns: a scalar >= 0.
    References: Lim et al., CVPR 2022; Yuan and Le-Phuoc, 2023, Eq. 5.
    """
    return F.cross_entropy(logits.to(_wide_dtype(logits)), labels)


@final
@dataclass(frozen=True)
class HISTTerms(LossTerms):
    """The parts of the loss, each a scalar with its gradient (Eq. 6).

    Attributes:
        total: distribution + lambda_s * cross_entropy, and the losses of leading widths.
        distribution: L_D (Eq. 1).
        cross_entropy: L_CE (Eq. 5), not yet weighted; zero where lambda_s is 0.
    """

    distribution: Float[Tensor, ""]
    cross_entropy: Float[Tensor, ""]


@final
class HISTLoss(MetricLoss):
    """Hypergraph-Induced Semantic Tuplet loss, L_D + lambda_s L_CE (Eq. 6).

    The loss has parameters that train with the network: pass `parameter_groups` to the optimizer.

    Args:
        num_classes: training classes, C >= 1.
        embedding_dim: width of the embeddings, D >= 1.
        tau: temperature of the distribution loss (Eq. 2), > 0.
        alpha: decay of the semantic tuplets (Eq. 3), > 0; any finite number with alpha_control.
        own_share: mean share of a tuplet's weight on samples of its own class, in [0, 1), for which alpha is
            solved in each batch, as a constant of the gradient; 0 uses alpha.
        lambda_s: weight of the hypergraph's cross entropy (Eq. 6), >= 0; 0 skips the HGNN.
        label_smoothing: of the distribution loss, in [0, 1); above 0, auto is plain and the others an error.
        matryoshka: leading widths, ascending and below D, whose distribution loss is added to the total, so
            that embeddings may be cut off there; if any, auto is plain and the others an error.
        hidden_dim: width of the hidden propagations, h >= 1.
        num_layers: propagations of the HGNN, L >= 1; the paper has 2.
        hypergraph: variants of the HGNN; none if not given.
        distance: between sample and class distribution: mahalanobis, euclidean, cosine or manhattan.
        variance: learnt; or unit, for distance mahalanobis only: sigma2 is one and no parameter to learn.
        implementation: plain calls the functions above in order and holds several tensors of N x C and C x D;
            chunked works through the classes in chunks and holds only the parameters and their gradients in
            full; compiled is chunked with the work per class fused by torch.compile (distance mahalanobis;
            with others it is chunked); auto is plain up to about half a million C D, above it chunked.
        class_fraction: share of the classes that a training step sums over, in (0, 1]: those of the batch,
            and others drawn again in each step. Below 1 both terms are too small, as classes are missing
            from the sums; eval() sums over all. Not with plain. Where several ranks compute the loss of one
            gathered batch without a shard, give torch the same seed on all of them before each step.
        sparse_gradients: with class_fraction < 1, gradients of the class parameters are sparse tensors of the
            rows summed over, for optimizers such as torch.optim.SparseAdam.
        alpha_control: allow alpha <= 0, which is outside the paper's range (weights of Eq. 4 are <= 1).
        shard: the classes whose parameters this rank keeps. Every rank must then be given the same batch, the
            gathered one (`gather_batch`), and have the same hidden weights: the same seed. Not with plain.
    Raises: SettingsError: (a ValueError) a setting outside its range.
    References: Lim et al., CVPR 2022; Yuan and Le-Phuoc, 2023.
    Example:
        >>> _ = torch.manual_seed(0)
        >>> loss = HISTLoss(num_classes=10, embedding_dim=8)
        >>> terms = loss.terms(torch.randn(4, 8), torch.tensor([0, 0, 3, 9]))
        >>> bool(terms.total == terms.distribution + terms.cross_entropy)
        True
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        *,
        tau: float = 32.0,
        alpha: float = 0.9,
        own_share: float = 0.0,
        lambda_s: float = 1.0,
        label_smoothing: float = 0.0,
        matryoshka: Sequence[int] = (),
        hidden_dim: int = 512,
        num_layers: int = 2,
        hypergraph: HypergraphConfig | None = None,
        distance: Distance = "mahalanobis",
        variance: Variance = "learnt",
        implementation: Implementation = "auto",
        class_fraction: float = 1.0,
        sparse_gradients: bool = False,
        alpha_control: bool = False,
        shard: ClassShard | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = whole_number("num_classes", num_classes)
        embedding_dim = whole_number("embedding_dim", embedding_dim)
        self.tau = positive_number("tau", tau)
        self.alpha = _checked_alpha(alpha, control=alpha_control)
        self.lambda_s = number("lambda_s", lambda_s, lambda given: 0 <= given < inf, "a finite number >= 0")
        self.own_share, self.label_smoothing = (
            number(name, value, lambda given: 0 <= given < 1, "a share in [0, 1)")
            for name, value in (("own_share", own_share), ("label_smoothing", label_smoothing))
        )
        self.hypergraph = hypergraph or HypergraphConfig()
        require_choice("distance", distance, get_args(Distance))
        has_variance = distance == "mahalanobis"
        require_choice("variance", variance, get_args(Variance) if has_variance else ("learnt",))
        require_choice("implementation", implementation, get_args(Implementation))
        self.class_fraction = number(
            "class_fraction", class_fraction, lambda given: 0 < given <= 1, "a share in (0, 1]"
        )
        if implementation == "plain" and (self.class_fraction < 1 or shard is not None):
            raise SettingsError(
                "implementation is plain with class_fraction < 1 or a shard; want chunked",
                subject="implementation",
                given=implementation,
                wanted="chunked",
            )
        self.matryoshka = leading_widths(matryoshka, embedding_dim)
        may_be_plain = implementation in ("auto", "plain") and self.class_fraction == 1 and shard is None
        not_plain = "with implementation chunked or compiled, class_fraction < 1 or a shard"
        smooth, leading = self.label_smoothing > 0, len(self.matryoshka) > 0
        require(may_be_plain or not smooth, "label_smoothing", label_smoothing, f"0 {not_plain}")
        require(may_be_plain or not leading, "matryoshka", matryoshka, f"() {not_plain}")
        self.distance, self.variance, self.implementation = distance, variance, implementation
        self.sparse_gradients, self.shard = sparse_gradients, shard
        self._memory = ReusedMemory()
        self._draw_parameters(embedding_dim, hidden_dim, num_layers)

    def _draw_parameters(self, embedding_dim: int, hidden_dim: int, num_layers: int) -> None:
        """Draw the distributions of the classes that are kept here, and the hypergraph network."""
        shard = self.shard
        rows = self.num_classes if shard is None else shard.num_kept
        self.means = nn.Parameter(torch.empty(rows, embedding_dim))
        self.log_variances = nn.Parameter(torch.empty(rows, embedding_dim))
        out_dim = self.num_classes if shard is None else 1
        self.hgnn = HGNN(embedding_dim, hidden_dim, out_dim, num_layers=num_layers)
        if shard is None:
            # He's deviation, sqrt(2 / fan), as in the authors' code; the fan-out of a matrix [C, D] is C. Of
            # the means only the direction counts. The log-variances start near zero, where sigma2 = 1; half
            # of them start below the clip and learn once weight decay has pulled them to zero.
            for parameter in (self.means, self.log_variances):
                nn.init.kaiming_normal_(parameter, mode="fan_out")
        else:
            self.hgnn.keep_output_rows(rows)
            initialise_rows(shard, self.means, self.log_variances, *self.hgnn.output_parameters())
        if self.variance == "unit":
            nn.init.zeros_(self.log_variances.requires_grad_(False))

    def terms(self, embeddings: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> HISTTerms:
        """Compute the loss of one batch in its parts (Eq. 6); arguments and errors as in `forward`.

        A batch of one is an error while the BatchNorms of the HGNN train.
        """
        embeddings, labels = self._checked(embeddings, labels)
        compute = self._plain_terms if self._is_plain() else self._chunked_terms
        return self.with_leading(compute(embeddings, labels), embeddings, labels)

    def leading_loss(self, leading: Float[Tensor, "N w"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """Compute the distribution loss (Eq. 1-2) of the first w coordinates.

        Cutting off the coordinates of a Gaussian with a diagonal covariance gives its marginal, so the class
        distributions of every width are those of the full one. Sample and mean get length one again. The
        HGNN reads the full width only: it is not needed after training, and would be most of the cost.
        """
        width = leading.shape[1]
        rows = (self.means[:, :width], self.log_variances[:, :width])
        distances = class_distances(leading, *rows, distance=self.distance)
        return distribution_loss(distances, labels, tau=self.tau, label_smoothing=self.label_smoothing)

    def _is_plain(self) -> bool:
        if self.implementation != "auto":
            return self.implementation == "plain"
        whole = self.shard is None and (self.class_fraction == 1 or not self.training)
        plain_only = self.label_smoothing > 0 or len(self.matryoshka) > 0
        return whole and (plain_only or self.means.numel() <= FEW_PARAMETERS)

    def _plain_terms(self, embeddings: Tensor, labels: Tensor) -> HISTTerms:
        distances = class_distances(embeddings, self.means, self.log_variances, distance=self.distance)
        smoothing = self.label_smoothing
        distribution = distribution_loss(distances, labels, tau=self.tau, label_smoothing=smoothing)
        if self.lambda_s == 0:
            return HISTTerms(distribution, distribution, torch.zeros_like(distribution))
        mixing = self.mixing(self.incidence(distances.index_select(1, labels), labels), labels)
        return self._terms(distribution, hypergraph_loss(self.hgnn_logits(embeddings, mixing), labels))

    def _chunked_terms(self, embeddings: Tensor, labels: Tensor) -> HISTTerms:
        # Computes the same values without an N x C tensor. Eq. 3-4 only need the distances to the classes of
        # the batch. The class head returns those as scores -tau d2, together with the log-partition.
        summed = self._summed_classes(labels)
        x = unit_rows(embeddings.to(_wide_dtype(embeddings, self.means)))
        kind, samples, distributions = self._distance_scores(x)
        scores, log_partition = self._class_head(kind, Inputs(samples, distributions), labels, summed)
        distribution = _negative_log_likelihood(scores, log_partition)  # Eq. 1-2
        if self.lambda_s == 0:
            return HISTTerms(distribution, distribution, torch.zeros_like(distribution))
        mixing = self.mixing(self.incidence((scores / -self.tau).clamp_min(0.0), labels), labels)
        hidden = self.hgnn.hidden(self._features(embeddings), mixing)
        # G (X Theta + 1 b^T) = (G X) Theta + (G 1) b^T: with G X and G 1 computed once, each class needs only
        # its own column of Theta and b, as the class head wants it. A gain on G is one on the logits.
        mixing = mixing * self.hypergraph.output_gain
        features = mixing @ hidden
        device, narrow = features.device.type, features.dtype
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if autocast and narrow != torch.float64:
            narrow = torch.get_autocast_dtype(device)
        inputs = Inputs((features, mixing.sum(dim=1)), self.hgnn.output_parameters())
        logits, log_partition = self._class_head(LinearScores(narrow), inputs, labels, summed)
        return self._terms(distribution, _negative_log_likelihood(logits, log_partition))  # Eq. 5

    def incidence(self, distances: Float[Tensor, "N N"], labels: Int[Tensor, " N"]) -> Float[Tensor, "N N"]:
        """Compute H (Eq. 3-4) from the distances of sample i to the class of sample j, with this alpha."""
        own_share = self.own_share
        alpha = alpha_of_share(distances.detach(), labels, own_share) if own_share > 0 else self.alpha
        incidence = _incidence_by_sample(distances, labels, alpha)
        return incidence if self.hypergraph.detach == "none" else incidence.detach()

    def mixing(self, incidence: Float[Tensor, "N N"], labels: Int[Tensor, " N"]) -> Float[Tensor, "N N"]:
        """Compute G, the HGNN's propagation matrix, from H; in the type of the HGNN's weights."""
        # Outside autocast the HGNN computes in the type of its weights; inside, autocast chooses.
        dtype = self.means.dtype
        weights = hyperedge_weights(labels, dtype=dtype)
        return propagation_matrix(incidence.to(dtype), weights, self_loops=self.hypergraph.self_loops)

    def hgnn_logits(
        self, embeddings: Float[Tensor, "N D"], mixing: Float[Tensor, "N N"]
    ) -> Float[Tensor, "N C"]:
        """Compute the HGNN's logits of all classes; only for a loss without a shard."""
        hidden = self.hgnn.hidden(self._features(embeddings), mixing)
        return self.hgnn.output(hidden, mixing) * self.hypergraph.output_gain

    def _features(self, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Return what the HGNN reads of the embeddings, in its type."""
        features = embeddings
        if self.hypergraph.features == "unit":
            features = unit_rows(embeddings.to(_wide_dtype(embeddings)))
        if self.hypergraph.detach == "inputs":
            features = features.detach()
        return features.to(self.means.dtype)

    def _terms(self, distribution: Tensor, cross_entropy: Tensor) -> HISTTerms:
        return HISTTerms(distribution + self.lambda_s * cross_entropy, distribution, cross_entropy)

    def _distance_scores(self, x: Tensor) -> tuple[ClassScores, tuple[Tensor, ...], tuple[Tensor, ...]]:
        if self.distance == "mahalanobis":
            kind = MahalanobisScores(self.tau, self.implementation == "compiled")
            return kind, (x, x * x), (self.means, self.log_variances)
        scores = partial(_scores_of_unit_rows, tau=self.tau, distance=self.distance)
        return PlainScores(scores), (x,), (self.means,)

    def _summed_classes(self, labels: Tensor) -> Tensor | None:
        if self.class_fraction == 1 or not self.training:
            return None
        first = 0 if self.shard is None else self.shard.first
        return draw_classes(len(self.means), labels - first, fraction=self.class_fraction)

    def _class_head(
        self, kind: ClassScores, inputs: Inputs, labels: Tensor, summed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        head = class_head if self.shard is None else partial(sharded_class_head, self.shard)
        return head(kind, inputs, labels, summed=summed, sparse=self.sparse_gradients, memory=self._memory)

    def parameter_groups(self, *, lr_distributions: float, lr_hgnn: float) -> list[dict[str, Any]]:
        """Return optimizer groups that hold each trainable parameter of the loss exactly once.

        Args:
            lr_distributions: learning rate of means and log-variances, >= 0; 1e-2 to 1e-1 in the paper.
            lr_hgnn: learning rate of the hypergraph network, >= 0; 5e-4 to 1e-3 in the paper.
        Returns: two dictionaries with "name", "params" and "lr", as torch optimizers take them.
        """
        distributions = [part for part in (self.means, self.log_variances) if part.requires_grad]
        return [
            {"name": "distributions", "params": distributions, "lr": lr_distributions},
            {"name": "hgnn", "params": list(self.hgnn.parameters()), "lr": lr_hgnn},
        ]

    def class_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that have a row per class, by their names in `named_parameters`."""
        rows = {id(self.means), id(self.log_variances), *map(id, self.hgnn.output_parameters())}
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) in rows}

    def extra_repr(self) -> str:
        """Return the settings, as `print` shows them."""
        return (
            f"{self.num_classes} classes, {self.means.shape[1]} dimensions, tau={self.tau},"
            f" alpha={self.alpha}, lambda_s={self.lambda_s}, distance={self.distance}"
        )

    def _checked(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        embeddings, labels = self.checked(embeddings, labels, width=self.means.shape[1])
        if len(labels) == 1 and self.training and self.lambda_s > 0 and len(self.hgnn.norms) > 0:
            raise DataError(
                "the batch holds 1 embedding; want 2 or more, since BatchNorm cannot train on one"
                " (drop the last incomplete batch, or call eval())",
                subject="embeddings",
                given=1,
                wanted=2,
            )
        return embeddings, labels


def _negative_log_likelihood(scores: Float[Tensor, "N N"], log_partition: Float[Tensor, " N"]) -> Tensor:
    # Column j is the class of sample j, so that the own class of each sample is on the diagonal.
    return (log_partition - scores.diagonal()).mean()


def _checked_alpha(alpha: float, *, control: bool) -> float:
    if control:
        return number("alpha", alpha, lambda given: -inf < given < inf, "a finite number")
    wanted = "a finite number > 0, or alpha_control=True"
    return number("alpha", alpha, lambda given: 0 < given < inf, wanted)
