"""Runs the checks of a client's program, one after the other, and prints a line of JSON for each.

Standard input is JSON: {url, model, key, png, pdf (base64), texts: {name of a check: what its user says}}.
"""

import asyncio
import inspect
import json
import sys
import traceback
from types import SimpleNamespace

runner = asyncio.Runner()  # one loop for all: clients keep their connections
given = SimpleNamespace(**json.load(sys.stdin))


def check(function):
    """Runs the check at once, with its text where there is one; what it returns or raises is its line."""
    text = given.texts.get(function.__name__)
    line = {"check": function.__name__}
    try:
        value = function(*([] if text is None else [text]))
        line["value"] = runner.run(value) if inspect.iscoroutine(value) else value
    except BaseException as error:
        line["error"] = f"{error!r}\n{traceback.format_exc(limit=-3)}"
    print(f"\n{json.dumps(line)}", flush=True)
    return function


def raised(call):
    """The exception of a call that must fail."""
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


async def cancelled_midway(read):
    """Whether `read` ends as cancelled, once it has called what it is given: something has come."""
    begun = asyncio.Event()
    task = asyncio.create_task(read(begun.set))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return task.cancelled()


def weather_of(city):
    return f"{city}: sunny"
