"""What the search server is asked and what it answers, as its OpenAPI description shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from tuplet.errors import InputError
from tuplet.search.index import IndexedPicture, Neighbour
from tuplet.search.map import CollectionMap
from tuplet.search.storage import all_of, label_is, path_like

MOST_FOUND = 500
MOST_LABELS = 2000
_LONGEST = 500


class Wanted(BaseModel):
    """How many pictures are wanted, and which may be among them."""

    model_config = ConfigDict(extra="forbid")

    top: int = Field(default=24, ge=1, le=MOST_FOUND, description="how many pictures")
    label: str | None = Field(default=None, max_length=_LONGEST, description="only pictures with this label")
    path: str | None = Field(
        default=None,
        max_length=_LONGEST,
        description="only pictures whose path fits: * any text, ? a character, [ab] one of these",
    )

    @field_validator("path")
    @classmethod
    def _may_be_used(cls, path: str | None) -> str | None:
        try:
            path_like(path or "")
        except InputError as error:
            raise PydanticCustomError("pattern", "{said}", {"said": str(error)}) from None
        return path

    @property
    def condition(self) -> str | None:
        """The SQL condition of `ImageIndex.nearest`."""
        return all_of(
            None if self.label is None else label_is(self.label),
            None if self.path is None else path_like(self.path),
        )


class WantedLike(Wanted):
    """What looks like a picture of the index."""

    id: str = Field(max_length=_LONGEST, description="of a picture of the index")


class WantedSome(BaseModel):
    """Any pictures."""

    model_config = ConfigDict(extra="forbid")

    top: int = Field(default=24, ge=1, le=MOST_FOUND, description="how many pictures")
    label: str | None = Field(default=None, max_length=_LONGEST, description="only pictures with this label")


class Picture(BaseModel):
    """A picture of the index: /images/ID is its file, /thumbnails/ID a small copy."""

    id: str
    path: str
    name: str
    label: str | None

    @classmethod
    def of(cls, picture: IndexedPicture, **more: Any) -> Picture:
        """The same as the server says it."""
        name = PurePath(picture.path).name
        return cls(id=picture.id, path=picture.path, name=name, label=picture.label, **more)


class Found(Picture):
    """A picture that was found."""

    distance: float = Field(description="1 - cosine, from 0 (the same direction) to 2")
    exact_copy: bool = Field(description="its file has the very bytes of what was looked up")


class SearchAnswer(BaseModel):
    """What was found, nearest first."""

    query: Picture | None = Field(description="what was looked up; null where it was sent")
    found: list[Found]

    @classmethod
    def of(cls, query: IndexedPicture | None, found: Sequence[Neighbour], content: str) -> SearchAnswer:
        """What was found, with exact copies of what has this hash marked."""
        return cls(
            query=None if query is None else Picture.of(query),
            found=[
                Found(
                    **Picture.of(one.picture).model_dump(),
                    distance=one.distance,
                    exact_copy=one.picture.content == content,
                )
                for one in found
            ],
        )


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
        """The labels by name; of more than `MOST_LABELS` only the most frequent ones."""
        often = sorted(counts, key=lambda label: (-counts[label], label))[:MOST_LABELS]
        named = [LabelCount(label=label, pictures=counts[label]) for label in sorted(often)]
        return cls(pictures=pictures, num_labels=len(counts), labels=named)


class MapAnswer(BaseModel):
    """A map of some pictures of the index, in which near means similar; lists are empty till then."""

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
        """The map as the server says it."""
        if drawn is None:
            return cls(ready=False, problem=problem)
        places = drawn.places.round(4).tolist()
        return cls(
            ready=True,
            total=drawn.total,
            ids=list(drawn.ids),
            labels=list(drawn.labels),
            label_of=drawn.label_of.tolist(),
            x=[x for x, _ in places],
            y=[y for _, y in places],
        )


class Health(BaseModel):
    """Whether the server can answer."""

    status: str = Field(description="ok, or what is wrong")


class Problem(BaseModel):
    """Why a request was not answered: one line that says what was got, what is wanted and what to do."""

    detail: str
