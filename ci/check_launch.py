"""Refuse settings of make that name no launch, before anything is installed or started."""

import re
import sys


def problem(settings):
    """What is wrong with the settings of a launch, by their names in make; ``None`` if nothing."""
    gpus, machines, rank = (settings[name] for name in ("GPUS", "NNODES", "NODE_RANK"))
    if not re.fullmatch(r"\d+|auto|gpu|cpu", gpus):
        return f"GPUS={gpus}: give the number of processes on this machine"
    if not re.fullmatch(r"[1-9]\d*", machines):
        return f"NNODES={machines}: give the number of machines, 1 or more"
    if not settings["MAX_RESTARTS"].isdigit():
        return f"MAX_RESTARTS={settings['MAX_RESTARTS']}: give a whole number, 0 for no restart"
    if rank and not (rank.isdigit() and int(rank) < int(machines)):
        return f"NODE_RANK={rank}: with NNODES={machines}, give {_numbers(machines)}"
    return None if machines == "1" else _meeting_problem(settings)


def _meeting_problem(settings):
    if not settings["NODE_RANK"]:
        numbers = _numbers(settings["NNODES"])
        return f"NODE_RANK is empty: give each machine a number of its own, {numbers}"
    if not settings["MASTER_ADDR"]:
        return "MASTER_ADDR is empty: give the name or address of the machine with NODE_RANK=0"
    port = settings["MASTER_PORT"]
    if not (port.isdigit() and 0 < int(port) < 2**16):
        return f"MASTER_PORT={port}: give a free port of that machine, 1024 to 65535"
    return None


def _numbers(machines):
    return "0" if machines == "1" else f"0 to {int(machines) - 1}"


if __name__ == "__main__":
    message = problem(dict(argument.split("=", 1) for argument in sys.argv[1:]))
    if message is not None:
        sys.stderr.write(f"error: {message}\n")
        sys.exit(2)
