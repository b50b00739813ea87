"""The requests and the responses of the search server, as its OpenAPI description shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from tuplet.errors import RequestError
from tuplet.search.classify import IndexAnswer
from tuplet.search.index import IndexedPicture, Neighbour
from tuplet.search.map import CollectionMap
from tuplet.search.storage import path_like, picture_condition

MOST_FOUND = 500
MOST_LABELS = 2000
_LONGEST = 500


class SampleQuery(BaseModel):
    """A question for any pictures."""

    model_config = ConfigDict(extra="forbid")

    top: int = Field(default=24, ge=1, le=MOST_FOUND, description="how many pictures")
    label: str | None = Field(default=None, max_length=_LONGEST, description="only pictures with this label")


class SearchQuery(SampleQuery):
    """A question for similar pictures."""

    path: str | None = Field(
        default=None,
        max_length=_LONGEST,
        description="only pictures whose path fits: * any text, ? a character, [ab] one of these",
    )

    @field_validator("path")
    @classmethod
    def _can_be_used(cls, path: str | None) -> str | None:
        try:
            path_like(path or "")
        except RequestError as error:
            raise PydanticCustomError("pattern", "{said}", {"said": str(error)}) from None
        return path

    @property
    def condition(self) -> str | None:
        """Return the SQL condition for `ImageIndex.nearest`."""
        return picture_condition(label=self.label, path=self.path)


class SimilarQuery(SearchQuery):
    """A question for pictures that are similar to one of the index."""

    id: str = Field(max_length=_LONGEST, description="of a picture of the index")


class Picture(BaseModel):
    """A picture of the index: /images/ID is its file, /thumbnails/ID a small copy."""

    id: str
    path: str
    name: str
    label: str | None

    @classmethod
    def of(cls, picture: IndexedPicture) -> Picture:
        """Describe a picture."""
        name = PurePath(picture.path).name
        return cls(id=picture.id, path=picture.path, name=name, label=picture.label)


class Found(Picture):
    """A picture that was found."""

    distance: float = Field(description="1 - cosine, from 0 (the same direction) to 2")
    exact_copy: bool = Field(description="its file has the very bytes of what was looked up")


class Verdict(BaseModel):
    """What the nearest pictures say, by the calibration of the model."""

    answer: str = Field(description="same, unsure, or nothing like it here")
    label: str | None = Field(description="that won the vote of the nearest; null for nothing like it here")
    probability: float | None = Field(
        description="that the label is right, if the class of every second picture is in the index"
    )

    @classmethod
    def of(cls, found: IndexAnswer) -> Verdict:
        """Describe an answer."""
        return cls(answer=str(found.answer), label=found.label, probability=found.probability)


class SearchAnswer(BaseModel):
    """What was found, nearest first."""

    query: Picture | None = Field(description="what was looked up; null where it was sent")
    found: list[Found]
    verdict: Verdict | None = Field(
        default=None, exclude_if=lambda verdict: verdict is None, description="absent without a calibration"
    )

    @classmethod
    def of(
        cls,
        query: IndexedPicture | None,
        neighbours: Sequence[Neighbour],
        content: str,
        said: IndexAnswer | None = None,
    ) -> SearchAnswer:
        """Describe what was found.

        Args:
            query: the picture of the index that was asked for; None: one that was sent.
            neighbours: nearest first.
            content: hash of the query's bytes; pictures with the same are marked as exact copies.
            said: what the neighbours answer, where the model is calibrated.
        """
        found = [
            Found(
                **dict(Picture.of(neighbour.picture)),
                distance=neighbour.distance,
                exact_copy=neighbour.picture.content == content,
            )
            for neighbour in neighbours
        ]
        verdict = None if said is None else Verdict.of(said)
        return cls(query=None if query is None else Picture.of(query), found=found, verdict=verdict)


class PicturesAnswer(BaseModel):
    """Some pictures."""

    pictures: list[Picture]


class LabelCount(BaseModel):
    """How many pictures a label has."""

    label: str
    pictures: int


class LabelsAnswer(BaseModel):
    """The labels, the most frequent ones where there are very many."""

    pictures: int = Field(description="in the index, with a label or not")
    num_labels: int
    labels: list[LabelCount]

    @classmethod
    def of(cls, pictures: int, counts: dict[str, int]) -> LabelsAnswer:
        """Describe the labels by name; of more than `MOST_LABELS` only the most frequent ones."""
        frequent = sorted(counts, key=lambda label: (-counts[label], label))[:MOST_LABELS]
        labels = [LabelCount(label=label, pictures=counts[label]) for label in sorted(frequent)]
        return cls(pictures=pictures, num_labels=len(counts), labels=labels)


class MapAnswer(BaseModel):
    """A map of some pictures of the index, in which near means similar; empty until it is ready."""

    ready: bool
    problem: str = Field(default="", description="why there is none, where that is so")
    total: int = Field(default=0, description="pictures in the index when it was drawn")
    ids: list[str] = []
    labels: list[str] = []
    label_of: list[int] = Field(default=[], description="place of each picture's label in labels; -1: none")
    x: list[float] = Field(default=[], description="0..1, to the right")
    y: list[float] = Field(default=[], description="0..1, down")

    @classmethod
    def of(cls, drawn: CollectionMap | None, problem: str) -> MapAnswer:
        """Describe a map, or why there is none."""
        if drawn is None:
            return cls(ready=False, problem=problem)
        x, y = drawn.places.round(4).T.tolist()
        return cls(
            ready=True,
            total=drawn.total,
            ids=list(drawn.ids),
            labels=list(drawn.labels),
            label_of=drawn.label_of.tolist(),
            x=x,
            y=y,
        )


class Health(BaseModel):
    """Whether the server can answer."""

    status: str = Field(description="ok, or what is wrong")


class Problem(BaseModel):
    """Why a request was not answered: one line with what was given, what is wanted and what to do."""

    detail: str
