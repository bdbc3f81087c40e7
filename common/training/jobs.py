"""Functions in new processes of this machine: trainings side by side, or one as several processes.

Two processes of one thread each get more done on two cores than one of two threads, whose threads
wait for each other after every small operation.
"""

import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection, wait

import torch

from common import job
from common.errors import UserError
from common.training.watch import NotFinite


def side_by_side(
    trainings: Mapping[str, Callable[[], object]], after: Mapping[str, str], jobs: int
) -> Iterator[tuple[str, object]]:
    """Call functions that can be pickled in new processes, `jobs` at a time, in their order.

    Their lines begin with their names. `after` names for some of them another that has to end
    first. Yields as each ends its name and what it returned, or the NotFinite that it raised.
    Another UserError, or the end of a process, stops the others.
    """
    waiting, working, threads = list(trainings), {}, max(1, torch.get_num_threads() // jobs)
    # A server that has loaded PyTorch once starts each process in no time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "common.training.runs"])
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
                try:
                    result = pipe.recv()
                except EOFError:
                    why = "what it said is above; if nothing, memory was short: start fewer"
                    raise UserError(f"{name}: its process has ended; {why}") from None
                if isinstance(result, UserError) and not isinstance(result, NotFinite):
                    raise result
                process.join()
                del working[pipe]
                yield name, result
    finally:
        for _, process in working.values():
            process.terminate()  # it saves first
        for _, process in working.values():
            process.join()


def _train(pipe: Connection, name: str, train: Callable[[], object], threads: int) -> None:
    os.setpgrp()  # Ctrl-C on a terminal reaches the parent, which passes it on, and not us twice
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    job.prefix = f"{name}: "
    try:
        pipe.send(train())
    except UserError as error:
        pipe.send(error)
    except KeyboardInterrupt:
        sys.exit(1)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()  # however that ended
    os._exit(1)


def launch(processes: int, function: Callable, *args) -> list:
    """Call a function that can be pickled in the processes of a job; its results by rank."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    calls = {
        f"process {rank}": partial(_as_rank, rank, processes, port, function, *args)
        for rank in range(processes)
    }
    results = dict(side_by_side(calls, {}, processes))
    for result in results.values():
        if isinstance(result, NotFinite):
            raise result
    return [results[name] for name in calls]


def _as_rank(rank: int, size: int, port: int, function: Callable, *args) -> object:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    return function(*args)
