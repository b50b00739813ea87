"""The numbers that the study prints, as constants: what reports show beside ours.

Source: Yuan and Le-Phuoc, "[Re] Hypergraph-Induced Semantic Tuplet Loss for Deep Metric Learning",
    ReScience C 9.2 #8, 2023, CC BY 4.0; table and figure numbers are its own. Its "OA" are the highest scores
    that it quotes from Lim et al., CVPR 2022. All are of one seed and of the epoch that was best on the test
    classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from tuplet.config import RunConfig

StudyData: TypeAlias = Literal["cub", "cars", "sop"]
StudyBackbone: TypeAlias = Literal["resnet50", "bn_inception"]
Method: TypeAlias = Literal["OA", "RE", "TUNE"]

_MODELS: dict[str, StudyBackbone] = {"resnet50.tv_in1k": "resnet50", "bn_inception": "bn_inception"}
_DATA: dict[str, StudyData] = {"cub": "cub", "cars": "cars", "sop": "sop"}


@final
@dataclass(frozen=True)
class StudySetting:
    """tau, alpha and lambda_s of one row of Table 2."""

    tau: float
    alpha: float
    lambda_s: float


TABLE_2_ORIGINAL: dict[StudyBackbone, dict[StudyData, StudySetting]] = {
    "resnet50": {
        "cars": StudySetting(32, 0.9, 1.0),
        "cub": StudySetting(32, 1.1, 1.0),
        "sop": StudySetting(16, 2.0, 1.0),
    },
    "bn_inception": {
        "cars": StudySetting(24, 0.9, 1.0),
        "cub": StudySetting(16, 1.0, 1.0),
        "sop": StudySetting(16, 1.6, 1.0),
    },
}
"""The settings of the original paper."""

TABLE_3_COLUMNS: dict[StudyData, tuple[str, ...]] = {
    "cub": ("R@1", "R@2", "R@4", "NMI"),
    "cars": ("R@1", "R@2", "R@4", "NMI"),
    "sop": ("R@1", "R@10", "R@100", "NMI"),
}

TABLE_3: dict[StudyBackbone, dict[Method, dict[StudyData, tuple[float, ...]]]] = {
    "bn_inception": {
        "OA": {
            "cub": (70.0, 80.2, 87.5, 71.0),
            "cars": (87.6, 92.8, 95.5, 73.2),
            "sop": (79.8, 91.2, 96.4, 92.5),
        },
        "RE": {
            "cub": (68.7, 78.3, 86.2, 70.3),
            "cars": (87.6, 92.8, 95.7, 73.1),
            "sop": (77.4, 89.6, 95.4, 89.9),
        },
        "TUNE": {
            "cub": (70.0, 79.4, 86.6, 70.8),
            "cars": (88.1, 92.7, 95.7, 73.4),
            "sop": (77.9, 90.1, 95.8, 90.5),
        },
    },
    "resnet50": {
        "OA": {
            "cub": (71.6, 81.4, 88.3, 74.3),
            "cars": (89.8, 94.0, 96.5, 75.5),
            "sop": (81.6, 92.2, 96.8, 93.0),
        },
        "RE": {
            "cub": (70.1, 79.7, 87.4, 72.9),
            "cars": (89.8, 94.4, 96.6, 75.4),
            "sop": (80.7, 91.2, 96.4, 91.9),
        },
        "TUNE": {
            "cub": (72.3, 81.8, 88.5, 75.6),
            "cars": (90.2, 94.5, 96.8, 75.8),
            "sop": (81.0, 91.6, 96.3, 92.2),
        },
    },
}
"""Percent. OA: quoted; RE: reproduced with the original settings; TUNE: with those that the study found."""

TABLE_4: dict[str, tuple[float, float, float]] = {
    "euclidean": (87.2, 92.5, 95.4),
    "cosine": (88.7, 93.6, 96.1),
    "mahalanobis": (90.2, 94.5, 96.8),
}
"""Percent R@1, R@2 and R@4 on CARS196 with ResNet-50, by distance."""

TABLE_7: dict[StudyBackbone, dict[StudyData, float]] = {
    "bn_inception": {"cars": 0.9, "cub": 1.1, "sop": 9.3},
    "resnet50": {"cars": 0.6, "cub": 1.7, "sop": 7.2},
}
"""Hours on one V100 of a training."""

FIGURE_3A: dict[int, dict[int, float]] = {
    256: {256: 85.59, 512: 88.53, 1024: 88.21},
    512: {256: 87.21, 512: 90.22, 1024: 89.41},
    1024: {256: 88.67, 512: 89.48, 1024: 89.97},
}
"""Percent R@1 on CARS196 with ResNet-50, by embedding size, then by hidden size."""

FIGURE_3B: dict[float, dict[int, float]] = {
    0.6: {8: 83.05, 24: 89.93, 32: 89.74},
    1.0: {8: 80.21, 24: 89.52, 32: 89.41},
    1.5: {8: 78.63, 24: 88.53, 32: 88.71},
}
"""Percent R@1 on CARS196 with ResNet-50, by lambda_s, then by tau: those that the figure prints."""


def study_cell(config: RunConfig) -> tuple[StudyBackbone, StudyData] | None:
    """Which backbone and data set of the study a run has; None where it has another."""
    backbone, data = _MODELS.get(config.model.backbone), _DATA.get(config.data.source)
    return None if backbone is None or data is None else (backbone, data)


def original_setting(config: RunConfig) -> StudySetting:
    """The original paper's settings for a run; for other data or backbones CARS196 with ResNet-50."""
    backbone, data = study_cell(config) or ("resnet50", "cars")
    return TABLE_2_ORIGINAL[backbone][data]
