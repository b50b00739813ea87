"""Any number of workers on one study: every trial is taken by one, and tried again where one was lost."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from tuplet.tuning.storage import Storage, storage_errors

Job = Callable[[optuna.Trial], float]

_COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)


def work(
    storage: Storage,
    study: optuna.Study,
    job: Job,
    *,
    wanted: int,
    prepare: Callable[[optuna.Study, int], None] = lambda study, number: None,
    waiting: Callable[[int], None] = lambda running: None,
    poll_seconds: float = 2.0,
) -> Iterator[FrozenTrial]:
    """Each trial that ended in this process, until as many as are wanted have ended anywhere.

    Trials that wait in the study are taken first, whatever `wanted` says. A trial that was stopped, here by
    Ctrl-C or elsewhere by the loss of its worker, is tried again under a new number with the same settings.

    Args:
        storage: of the study.
        study: which other workers may share.
        job: from a trial to its value. What it raises ends the work.
        wanted: trials in all, >= 0.
        prepare: called with the study and the next trial's number before it is taken; no other worker takes
            one meanwhile.
        waiting: called with the number of trials that run elsewhere, when no other is left to take.
        poll_seconds: between two looks whether those have ended, > 0.

    Raises:
        InputError: (a ValueError) the storage cannot be reached.
    """
    told = 0
    while True:
        ended: list[FrozenTrial] = []
        with storage_errors(storage.name), ExitStack() as lock:
            lock.enter_context(storage.lock(study.study_name))
            states = _states(study)
            free = states[TrialState.WAITING] > 0 or sum(states[one] for one in _COUNTED) < wanted
            if free:
                prepare(study, sum(states.values()))
                ended = _one_trial(storage, study, job, lock.close)
        yield from ended
        if free:
            continue
        running = states[TrialState.RUNNING]
        if not running:
            return
        if running != told:
            told = running
            waiting(running)
        time.sleep(poll_seconds)


def first_number(trial: FrozenTrial | optuna.Trial) -> int:
    """The number under which a trial's settings were first tried."""
    return int(trial.user_attrs.get("first_number", trial.number))


def _states(study: optuna.Study) -> Counter[TrialState]:
    with _without_experimental_warnings():
        fail_stale_trials(study)
    return Counter(trial.state for trial in study.get_trials(deepcopy=False))


def _one_trial(
    storage: Storage, study: optuna.Study, job: Job, release: Callable[[], None]
) -> list[FrozenTrial]:
    """Take one trial and do it, the lock let go as soon as it is taken; empty where it was lost meanwhile."""
    taken: list[int] = []
    raised: list[BaseException] = []
    ended: list[FrozenTrial] = []

    def released(trial: optuna.Trial) -> float:
        release()
        taken.append(trial.number)
        trial.set_user_attr("first_number", first_number(trial))
        try:
            return job(trial)
        except BaseException as error:
            raised.append(error)
            raise

    try:
        with _without_experimental_warnings():
            study.optimize(released, n_trials=1, callbacks=[lambda _, trial: ended.append(trial)])
    except KeyboardInterrupt:
        if taken:
            _try_again(storage, study, taken[0])
        raise
    except Exception:
        if raised and not isinstance(raised[0], optuna.TrialPruned):
            raise raised[0] from None
        # A worker that was silent for too long: its trial was given to another, and its value is refused.
        if not taken or study.get_trials(deepcopy=False)[taken[0]].state != TrialState.FAIL:
            raise
    return ended


def _try_again(storage: Storage, study: optuna.Study, number: int) -> None:
    """Let the trial wait for the next worker, unless it does already."""
    with storage.lock(study.study_name), _without_experimental_warnings():
        trials = study.get_trials()
        if not any(number in trial.system_attrs.get("retry_history", []) for trial in trials):
            RetryHeartbeatStaleTrialCallback()(study, trials[number])


@contextlib.contextmanager
def _without_experimental_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
