"""Vectors in few bytes: leading directions, as floats, as bytes or as bits."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, final, get_args

import numpy as np
from jaxtyping import Float, Float32, Int8, UInt8

from tuplet.errors import SettingsError
from tuplet.metrics.unit_length import at_unit_length

CodeKind: TypeAlias = Literal["float32", "int8", "bits"]
"""How a direction is kept: 4 bytes, a byte and a bit, or a bit."""

_LEAST_WIDTH = 8


@final
@dataclass(frozen=True, eq=False)
class SmallCode:
    """How unit vectors are kept in few bytes; from bytes and bits, float32 vectors are made to rank with.

    A query stays float32: only what is stored loses precision. Codes of the kind int8 hold the bits too:
    a search goes through those first, to rank the best of them by bytes.

    Attributes:
        kind: see `CodeKind`.
        rotation: columns are the directions that are kept, orthonormal, [D, w]; w is a multiple of 8.
    """

    kind: CodeKind
    rotation: Float32[np.ndarray, "D w"]

    @property
    def width(self) -> int:
        """Return the number of directions that are kept."""
        return int(self.rotation.shape[1])

    @property
    def num_bytes(self) -> int:
        """Return the bytes of a vector."""
        return code_bytes(self.kind, self.width)

    def project(self, vectors: Float[np.ndarray, "N D"]) -> Float32[np.ndarray, "N w"]:
        """Return the directions that are kept, of unit length, as a query is ranked with."""
        # A vector in none of the directions has no cosine; zeros are equally far from everything.
        return at_unit_length(vectors.astype(np.float32) @ self.rotation)

    def bits(self, projected: Float32[np.ndarray, "N w"]) -> UInt8[np.ndarray, "N b"]:
        """Return the signs of the directions, eight a byte."""
        return np.packbits(projected > 0, axis=1)

    def bytes(self, projected: Float32[np.ndarray, "N w"]) -> Int8[np.ndarray, "N w"]:
        """Return each vector in whole numbers up to 127; cosines need no scale."""
        largest = np.abs(projected).max(axis=1, keepdims=True)
        codes: Int8[np.ndarray, "N w"] = np.rint(
            projected * (127 / np.where(largest > 0, largest, 1))
        ).astype(np.int8)
        return codes

    def stored(self, projected: Float32[np.ndarray, "N w"]) -> Float32[np.ndarray, "N w"]:
        """Return the unit vectors that are left of projected ones after they were stored."""
        if self.kind == "float32":
            return projected
        if self.kind == "int8":
            return self.from_bytes(self.bytes(projected))
        return self.from_bits(self.bits(projected))

    def from_bytes(self, codes: Int8[np.ndarray, "N w"]) -> Float32[np.ndarray, "N w"]:
        """Return the unit vectors of `bytes`."""
        return at_unit_length(codes.astype(np.float32))

    def from_bits(self, codes: UInt8[np.ndarray, "N b"]) -> Float32[np.ndarray, "N w"]:
        """Return the unit vectors of `bits`."""
        signs = np.unpackbits(codes, axis=1, count=self.width).astype(np.float32) * 2 - 1
        unit: Float32[np.ndarray, "N w"] = (signs / np.sqrt(self.width)).astype(np.float32)
        return unit

    def lift(self, projected: Float32[np.ndarray, "N w"]) -> Float32[np.ndarray, "N D"]:
        """Return unit vectors as wide as the model's, which `project` takes back."""
        lifted: Float32[np.ndarray, "N D"] = (projected @ self.rotation.T).astype(np.float32)
        return lifted

    def to_json(self) -> str:
        """Return the code as an index stores it."""
        values = np.ascontiguousarray(self.rotation, dtype="<f4")
        text = base64.b64encode(values.tobytes()).decode()
        return json.dumps({"kind": self.kind, "width": self.width, "rotation": text})

    @classmethod
    def from_json(cls, text: str) -> SmallCode:
        """Return the code that `to_json` wrote."""
        tree = json.loads(text)
        values = np.frombuffer(base64.b64decode(tree["rotation"]), dtype="<f4").reshape(-1, tree["width"])
        return cls(tree["kind"], values.astype(np.float32))


def code_bytes(kind: CodeKind, width: int) -> int:
    """Return the bytes of a vector; int8 counts its bits too."""
    return {"float32": 4 * width, "int8": width + width // 8, "bits": width // 8}[kind]


def widest(kind: CodeKind, num_bytes: int, dim: int) -> int:
    """Return the largest multiple of 8, up to `dim`, that is a width of a kind within some bytes; else 0."""
    return max((width for width in range(8, dim + 1, 8) if code_bytes(kind, width) <= num_bytes), default=0)


@final
class Directions:
    """The leading directions of vectors, from which codes of any width are made.

    They are those of the largest mean square (PCA without centring): all of them together are a rotation,
    which leaves every cosine as it is. Centring would change cosines even at full width.

    Args:
        vectors: of unit length, to find the directions of; no labels are used. With fewer vectors than
            directions the last directions are arbitrary.
    """

    def __init__(self, vectors: Float[np.ndarray, "N D"]) -> None:
        self._vectors = vectors

    @cached_property
    def _basis(self) -> Float[np.ndarray, "D D"]:
        values = self._vectors.astype(np.float64)
        basis: Float[np.ndarray, "D D"] = np.linalg.eigh(values.T @ values)[1][:, ::-1]
        return basis

    def code(self, kind: CodeKind, width: int) -> SmallCode:
        """Return the code of a kind and width.

        Raises:
            SettingsError: another kind, or a width that is no multiple of 8 in 8..D.
        """
        dim = self._vectors.shape[1]
        if kind not in get_args(CodeKind):
            raise SettingsError(
                f"the kind is {kind!r}; want float32, int8 or bits", subject="kind", given=kind
            )
        if width % 8 or not _LEAST_WIDTH <= width <= dim:
            raise SettingsError(
                f"the width is {width}; want a multiple of 8 from 8 to {dim}", subject="width", given=width
            )
        leading = self._basis[:, :width]
        if kind != "float32":
            # Signs weigh all directions alike, but the first hold most of the length. Turned at random among
            # themselves, all hold the same share (Gong and Lazebnik, CVPR 2011, PCA-RR).
            turn = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
            leading = leading @ turn
        return SmallCode(kind, np.ascontiguousarray(leading, dtype=np.float32))
