"""Several trainings at a time, each in a process of its own.

Two processes of one thread each get more done on two cores than one of two threads, whose threads
wait for each other after every small operation.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait

import torch

from common import job
from common.errors import UserError
from common.training.watch import NotFinite


def side_by_side(
    trainings: Mapping[str, Callable[[], dict]],
    after: Mapping[str, str],
    jobs: int,
    finished: Callable[[str, dict | NotFinite], None],
) -> None:
    """Call functions that can be pickled in new processes, `jobs` at a time, in their order.

    Their lines begin with their names. `after` names for some of them another that has to end
    first. `finished(name, result)` is called here as each ends, with what it returned, or with the
    NotFinite that it raised.

    Raises:
        UserError: that of a training, or one was ended by the system. The others are stopped.
    """
    waiting, working, threads = list(trainings), {}, max(1, torch.get_num_threads() // jobs)
    # A server that has loaded PyTorch once starts each process in no time; Windows has none.
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    context.set_forkserver_preload(["__main__", __name__])
    try:
        while waiting or working:
            unfinished = {*waiting, *(name for name, _ in working.values())}
            ready = [name for name in waiting if after.get(name) not in unfinished]
            for name in ready[: jobs - len(working)]:
                pipe, its_end = context.Pipe(duplex=False)
                arguments = (its_end, name, trainings[name], threads)
                process = context.Process(target=_train, args=arguments, daemon=True)
                process.start()
                its_end.close()
                working[pipe] = (name, process)
                waiting.remove(name)
            for pipe in wait(list(working)):
                name, process = working[pipe]
                result = _result(pipe, name)
                process.join()
                del working[pipe]
                finished(name, result)
    finally:
        for _, process in working.values():
            process.terminate()  # it saves first
        for _, process in working.values():
            process.join()


def _result(pipe: Connection, name: str) -> dict | NotFinite:
    try:
        result = pipe.recv()
    except EOFError:
        raise UserError(f"{name}: its process has ended; out of memory? take --jobs 1") from None
    if isinstance(result, UserError) and not isinstance(result, NotFinite):
        raise result
    return result


def _train(pipe: Connection, name: str, train: Callable[[], dict], threads: int) -> None:
    os.setpgrp()  # Ctrl-C on a terminal reaches the parent, which passes it on, and not us twice
    job.end_with_parent()
    torch.set_num_threads(threads)
    job.prefix = f"{name}: "
    try:
        pipe.send(train())
    except UserError as error:
        pipe.send(error)
    except KeyboardInterrupt:
        sys.exit(1)
