"""The hypergraph neural network over the samples of a batch.

Sizes: N samples in a batch, C classes, E classes present in the batch, D embedding width, h hidden width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

LEAKY_SLOPE = 0.1


def propagation_matrix(incidence: Float[Tensor, "N E"]) -> Float[Tensor, "N N"]:
    """How a hypergraph convolution mixes the samples, G = Dv^-1/2 H De^-1 H^T Dv^-1/2.

    Args:
        incidence: H, values > 0. Dv holds its row sums, De its column sums; hyperedge weights are 1.

    Returns: a symmetric positive semidefinite matrix.

    Source: Feng et al., "Hypergraph Neural Networks", AAAI 2019.
    """
    root = incidence * incidence.sum(dim=1, keepdim=True).rsqrt() * incidence.sum(dim=0).rsqrt()
    return root @ root.T


@final
class HGNN(nn.Module):
    """Hypergraph neural network: L propagations G (X Theta + 1 b^T), from D features to C logits.

    All but the last are followed by BatchNorm and LeakyReLU(0.1).

    Args:
        in_dim: width of the features, D >= 1.
        hidden_dim: width of the hidden propagations, h >= 1.
        out_dim: width of the output, C >= 1.
        num_layers: propagations, L >= 1; with 1 there is no hidden one.

    Source: Feng et al., AAAI 2019, as used by Lim et al., CVPR 2022.
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, num_layers: int = 2) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:-1])

    def forward(
        self, features: Float[Tensor, "N D"], incidence: Float[Tensor, "N E"]
    ) -> Float[Tensor, "N C"]:
        """Class logits of each sample, after it has heard from the samples it shares tuplets with."""
        mixing = propagation_matrix(incidence)
        output: Tensor = mixing @ self.layers[-1](self.hidden(features, mixing))
        return output

    def hidden(self, features: Float[Tensor, "N D"], mixing: Float[Tensor, "N N"]) -> Float[Tensor, "N h"]:
        """What the hidden propagations make of the features; with one layer, the features themselves."""
        for layer, norm in zip(self.layers, self.norms, strict=False):
            features = F.leaky_relu(norm(mixing @ layer(features)), LEAKY_SLOPE)
        return features

    def keep_output_rows(self, rows: int) -> None:
        """Nothing; the output propagation then has that many classes, >= 0, and no values yet."""
        width = self.output_parameters()[0].shape[1]
        with torch.device("meta"):
            output = nn.Linear(width, 1)
        output.out_features = rows
        output.weight = nn.Parameter(torch.empty(rows, width))
        output.bias = nn.Parameter(torch.empty(rows))
        self.layers[-1] = output

    def output_parameters(self) -> tuple[Float[Tensor, "C h"], Float[Tensor, " C"]]:
        """Weights and biases of the output propagation, one row a class."""
        output = self.layers[-1]
        assert isinstance(output, nn.Linear)
        return output.weight, output.bias
