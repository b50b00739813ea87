"""One cell of loss_step.py, in a process of its own: one loss at one N and one C.

How memory is counted. Extra memory is what a step holds at its peak beyond the parameters and one copy of
the gradients. On a CPU it is the peak of the resident memory (VmHWM, reset through clear_refs) during the
first step, minus the resident memory before it, minus the bytes of all gradients after it. Before that step
the parameters exist, and a few classes went through the same loss, so that libraries, threads and compiled
code are loaded; no gradient of the full size has existed. So gradients are in the peak once, whoever owns
their memory (HISTLoss keeps it from step to step, the others give it back), and are taken out once; a peak
from before the gradients exist counts for less by as much. During this one step malloc takes every larger
piece from the system and returns it at once, for otherwise what it holds back, tens of MB, would count or
hide. On CUDA the same sum is made of torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from torch import Tensor

from benchmarks.cells import Cell, Gauge, quartiles, returning_memory, send_outcome
from benchmarks.floor import Floor, FloorTime, synchronize
from benchmarks.loss_step.methods import HIST, KEEPING, WIDTH, build, default_value
from tuplet.losses.many_classes.memory import classes_in_chunk

FEWEST_STEPS, MOST_STEPS = 3, 200
SLOW = 5.0
"""Seconds from which on a first step is like any other, unless the loss keeps memory for the second."""
TOLERANCE = 1e-4
"""Between implementations of HIST, relative above one."""


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        method, num_samples, num_classes, device: the cell.
        threads: of torch; 0 leaves it as it is.
        seconds: steps and floors are repeated for so long, and three times at least ...
        repeats: ... or exactly so often, if above 0.
        paired: default steps alternate with the loss's, once its memory is known.
    """

    method: str
    num_samples: int
    num_classes: int
    device: str
    threads: int
    seconds: float
    repeats: int
    paired: bool


@dataclass(frozen=True)
class Round:
    """Seconds of neighbours: the floor, a step, and a default step or None."""

    floor: FloorTime
    step: float
    default: float | None


def run(request: Request, connection: Connection) -> None:
    """Send what was measured, or why it could not be; the whole life of a cell's process."""
    send_outcome(measure, request, connection, device=request.device)


def measure(request: Request) -> Cell:
    """What was measured, as plain numbers."""
    device = torch.device(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    torch.manual_seed(0)
    floor = Floor(request.num_samples, request.num_classes, WIDTH, device)
    floor.measure()
    if request.method == "floor":
        return _floor_alone(floor, request)
    _load(request, device)
    case = _Case(request.method, request, device)
    before = floor.measure()
    with returning_memory():
        gauge = Gauge(device)
        first, value = case.step()
        extra = gauge.peak() - case.gradient_bytes
    if request.method in HIST and request.method != "auto":
        expected = default_value(case.module, case.embeddings, case.labels)
        if abs(value - expected) > TOLERANCE * max(1.0, abs(expected)):
            raise ValueError(
                f"{request.method} gives {value}, default {expected}; want them {TOLERANCE} close"
            )
    counts = first > SLOW and request.method not in KEEPING
    if first < SLOW:
        case.step()
    return {
        "status": "measured",
        "value": value,
        "parameter_bytes": case.parameter_bytes,
        "gradient_bytes": case.gradient_bytes,
        "extra_bytes": extra,
        **_summary(_rounds(case, floor, request, (before, first) if counts else None)),
    }


class _Case:
    """A loss with its parameters and a batch."""

    def __init__(self, method: str, request: Request, device: torch.device, classes: int = 0) -> None:
        classes = classes or request.num_classes
        self.device = device
        self.module, self.loss = build(method, classes, device)
        self.embeddings = torch.randn(request.num_samples, WIDTH, device=device, requires_grad=True)
        self.labels = torch.randint(0, classes, (request.num_samples,), device=device)
        self.parameter_bytes = _bytes(list(self.module.parameters()))
        self.gradient_bytes = 0

    def step(self) -> tuple[float, float]:
        """Seconds forward and backward, and the loss."""
        self.free()
        synchronize(self.device)
        start = time.perf_counter()
        value = self.loss(self.embeddings, self.labels)
        value.backward()
        synchronize(self.device)
        seconds = time.perf_counter() - start
        leaves = [self.embeddings, *self.module.parameters()]
        self.gradient_bytes = _bytes([leaf.grad for leaf in leaves if leaf.grad is not None])
        return seconds, float(value.detach())

    def free(self) -> None:
        """Give the gradients back."""
        self.embeddings.grad = None
        self.module.zero_grad(set_to_none=True)


def _load(request: Request, device: torch.device) -> None:
    # So few classes that they take little memory. torch.compile makes code for a size, and is given chunks of
    # the sizes that all classes have.
    few = min(request.num_classes, 128)
    if device.type == "cuda":
        few = request.num_classes
    elif request.method == "compiled":
        chunk = classes_in_chunk(request.num_samples, torch.empty(1, WIDTH))
        few = request.num_classes if request.num_classes < chunk else chunk + request.num_classes % chunk
    case = _Case(request.method, request, device, few)
    case.step()


def _rounds(
    case: _Case, floor: Floor, request: Request, first: tuple[FloorTime, float] | None
) -> Iterator[Round]:
    rival = _Case("auto", request, case.device) if request.paired else None
    case.free()
    if rival:
        rival.step()
    done, start = 0, time.perf_counter()
    while done < (request.repeats or MOST_STEPS):
        beside, step = first or (floor.measure(), case.step()[0])
        first = None
        yield Round(beside, step, rival.step()[0] if rival else None)
        if rival:
            rival.free()
        done += 1
        if not request.repeats and done >= FEWEST_STEPS and time.perf_counter() - start > request.seconds:
            return


def _summary(rounds: Iterator[Round]) -> dict[str, object]:
    done = list(rounds)
    result: dict[str, object] = {
        "steps": len(done),
        "step_seconds": quartiles([one.step for one in done]),
        **_floors([one.floor for one in done]),
        "to_floor": quartiles([one.step / one.floor.total for one in done]),
    }
    pairs = [(one.step, one.default) for one in done if one.default is not None]
    if pairs:
        result["default_beside_seconds"] = quartiles([default for _, default in pairs])
        result["to_default"] = quartiles([step / default for step, default in pairs])
    return result


def _floors(floors: list[FloorTime]) -> dict[str, object]:
    return {
        "floor_seconds": quartiles([one.total for one in floors]),
        "floor_products_seconds": quartiles([one.products for one in floors]),
        "floor_bytes_seconds": quartiles([one.moves for one in floors]),
    }


def _floor_alone(floor: Floor, request: Request) -> dict[str, object]:
    floors, memory, start = [], [], time.perf_counter()
    while len(floors) < FEWEST_STEPS or time.perf_counter() - start < request.seconds / 3:
        floors.append(floor.measure())
        memory.append(floor.from_memory())
    result = {"status": "measured", "steps": len(floors), **_floors(floors)}
    return {**result, "products_from_memory_seconds": quartiles(memory)}


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
