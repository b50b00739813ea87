"""The hypergraph neural network over the samples of a batch.

Sizes: N samples in a batch, M hyperedges (N in the HIST loss), C classes, D embedding width, h hidden width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from tuplet.config.checks import whole_number

LEAKY_SLOPE = 0.1


def propagation_matrix(
    incidence: Float[Tensor, "N M"],
    weights: Float[Tensor, " M"] | None = None,
    *,
    self_loops: float = 0.0,
) -> Float[Tensor, "N N"]:
    """Compute how a hypergraph convolution mixes the samples, G = Dv^-1/2 H W De^-1 H^T Dv^-1/2.

    Args:
        incidence: H, values > 0. De holds its column sums, and Dv its row sums weighted by `weights`.
        weights: of the hyperedges, the diagonal of W, > 0; all 1 if not given.
        self_loops: share s of itself that a sample keeps, for (1 - s) G + s I, in [0, 1).
    Returns: a symmetric positive semidefinite matrix.
    References: Feng et al., "Hypergraph Neural Networks", AAAI 2019.
    """
    # G = R R^T with R = Dv^-1/2 H (W De^-1)^1/2: one product, and no diagonal matrix is ever formed. Dividing
    # by the degrees keeps the eigenvalues in [0, 1]: stacked propagations do not make features grow, and a
    # sample does not count more because it belongs to many tuplets. The code calls De `edges`.
    edges = incidence.sum(dim=0)
    weighted = incidence if weights is None else incidence * weights
    scales = edges.rsqrt() if weights is None else (weights / edges).sqrt()
    root = incidence * weighted.sum(dim=1, keepdim=True).rsqrt() * scales
    mixing = root @ root.T
    if self_loops == 0:
        return mixing
    # G averages samples and so shrinks their differences; the identity keeps them. The eigenvalues of both
    # are in [0, 1], so those of the weighted mean are too.
    own = torch.eye(len(mixing), dtype=mixing.dtype, device=mixing.device)
    return (1.0 - self_loops) * mixing + self_loops * own


@final
class HGNN(nn.Module):
    """Hypergraph neural network: L propagations G (X Theta + 1 b^T), from D features to C logits.

    All but the last are followed by BatchNorm and LeakyReLU(0.1).

    Args:
        in_dim: width of the features, D >= 1.
        hidden_dim: width of the hidden propagations, h >= 1.
        out_dim: width of the output, C >= 1.
        num_layers: propagations, L >= 1; with 1 there is no hidden one.
    References: Feng et al., AAAI 2019, as used by Lim et al., CVPR 2022.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, num_layers: int = 2) -> None:
        super().__init__()
        first, hidden = whole_number("in_dim", in_dim), whole_number("hidden_dim", hidden_dim)
        last, num_layers = whole_number("out_dim", out_dim), whole_number("num_layers", num_layers)
        widths = [first, *[hidden] * (num_layers - 1), last]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:-1])

    def forward(
        self,
        features: Float[Tensor, "N D"],
        incidence: Float[Tensor, "N M"],
        weights: Float[Tensor, " M"] | None = None,
    ) -> Float[Tensor, "N C"]:
        """Compute the class logits of each sample from its own features and those of its tuplets.

        Args:
            features: one row per sample.
            incidence: of each sample in each hyperedge, as `propagation_matrix` takes it.
            weights: of the hyperedges, likewise.
        """
        mixing = propagation_matrix(incidence, weights)
        return self.output(self.hidden(features, mixing), mixing)

    def output(self, features: Float[Tensor, "N h"], mixing: Float[Tensor, "N N"]) -> Float[Tensor, "N C"]:
        """Apply the output propagation, from the hidden features to the class logits."""
        logits: Tensor = mixing @ self.layers[-1](features)
        return logits

    def hidden(self, features: Float[Tensor, "N D"], mixing: Float[Tensor, "N N"]) -> Float[Tensor, "N h"]:
        """Apply the hidden propagations; with one layer, return the features themselves."""
        for layer, norm in zip(self.layers, self.norms, strict=False):
            # G multiplies the bias too, G (X Theta + 1 b^T), as in the authors' code. Rows of G do not sum to
            # one, so the bias is scaled differently for each sample. That is why BatchNorm does not cancel
            # it, as it would cancel a constant, and why the bias may not be added after the product.
            features = F.leaky_relu(norm(mixing @ layer(features)), LEAKY_SLOPE)
        return features

    def keep_output_rows(self, rows: int) -> None:
        """Replace the output propagation by one of `rows` classes, >= 0, whose values are not set yet."""
        width = self.output_parameters()[0].shape[1]
        # On "meta", torch neither allocates nor initialises the layer. Initialising a layer of no classes
        # would raise a warning.
        with torch.device("meta"):
            output = nn.Linear(width, 1)
        output.out_features = rows
        output.weight = nn.Parameter(torch.empty(rows, width))
        output.bias = nn.Parameter(torch.empty(rows))
        self.layers[-1] = output

    def output_parameters(self) -> tuple[Float[Tensor, "C h"], Float[Tensor, " C"]]:
        """Return weights and biases of the output propagation, one row per class."""
        output = self.layers[-1]
        assert isinstance(output, nn.Linear)
        return output.weight, output.bias
