"""`orch request`: one request from the shell, its answer as JSON."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import click

from orch import runtime
from orch.errors import ConfigError
from orch_cli.options import instance_name, name_option, seconds


@click.command()
@click.argument("text", required=False)
@click.option("--json", "json_text", metavar="TEXT", help="The payload as JSON.")
@click.option("--file", "path", metavar="FILE", help="The payload from a file: .json, .npy, text or bytes; - is stdin.")
@click.option("--timeout", "timeout", metavar="SECONDS", help="Give up after this long.  [default: wait]")
@click.option("--endpoint", metavar="ENDPOINT", help="Where to send it, instead of a name.")
@name_option
def request(
    text: str | None,
    json_text: str | None,
    path: str | None,
    timeout: str | None,
    endpoint: str | None,
    name: str | None,
) -> None:
    """Send one request and print the answer.

    The answer is printed as JSON: arrays as lists, bytes as text or as {"base64": …}.
    """
    if sum(given is not None for given in (text, json_text, path)) != 1:
        raise click.UsageError("give one payload: TEXT, --json TEXT or --file FILE")
    if endpoint is not None and name is not None:
        raise click.UsageError("give --endpoint or --name, not both")
    timeout_s = seconds("timeout_s", timeout, "--timeout")
    if json_text is not None:
        payload = parse_json(json_text, "--json")
    else:
        payload = read_payload(path) if path is not None else text

    if endpoint is None:
        _refuse_command(instance_name(name))

    from orch import Client

    with Client(endpoint) if endpoint is not None else Client(name=instance_name(name)) as client:
        try:
            answer = client.request(payload, timeout=timeout_s)
        except TypeError as error:  # a payload that the wire has no form for, such as an integer of 100 digits
            raise ConfigError(f"the payload cannot be sent: {error}") from error
    click.echo(json.dumps(as_json(answer), ensure_ascii=False))


def _refuse_command(instance: str) -> None:
    """An instance of a command has no balancer that would take a request of ours."""
    if (runtime.find(instance) / runtime.FRONT).exists():
        return
    from orch.supervising import control

    told = control.call(instance, "servers")
    if told["kind"] == "command":
        where = ", ".join(f"http://{server['address']}" for server in told["servers"]) or "none is ready yet"
        raise ConfigError(
            f"instance {instance!r} runs a command, which takes HTTP requests of its own kind ({where}); "
            "send them with curl, or through the proxy of `orch deploy nginx`"
        )


def parse_json(text: str, source: str) -> Any:
    """The value that `text` is; the error says where it stops being JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the payload (from {source}) is not JSON: {error}") from error


def read_payload(path: str) -> Any:
    """A file's content: JSON and arrays by the name's ending, else text if it is UTF-8, else bytes."""
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"the payload (from --file {path}) cannot be read: {error.strerror}") from error
    if path.endswith(".npy"):
        return _array(path)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        if path.endswith(".json"):
            raise ConfigError(f"the payload (from --file {path}) is not JSON: it is not even UTF-8") from None
        return content
    return parse_json(text, f"--file {path}") if path.endswith(".json") else text


def _array(path: str) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"the payload (from --file {path}) is no .npy array: {error}") from error


def as_json(value: object) -> Any:
    """An answer in JSON's words: arrays and tensors as lists, bytes as text or as {"base64": …}."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes() | bytearray() | memoryview():
            content = bytes(value)
            try:
                return content.decode()
            except UnicodeDecodeError:
                return {"base64": base64.b64encode(content).decode()}
        case dict():
            return {str(key): as_json(entry) for key, entry in value.items()}
        case list() | tuple():
            return [as_json(entry) for entry in value]
    # numpy's and torch's arrays and scalars, without importing either
    tolist = getattr(value, "tolist", None)
    return as_json(tolist()) if callable(tolist) else str(value)
