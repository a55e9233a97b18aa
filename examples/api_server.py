"""An API server as people write them: text in, generated text out, one request at a time. It knows nothing of orch.

    orch up --vram-per-replica 7GiB --health /v1/health -- python examples/api_server.py --listen 127.0.0.1:{port}
    curl http://127.0.0.1:9100/v1/generate -d '{"text": "The garden"}'

`Generator` is a real model, though a small one: it continues a text with characters that followed similar endings in
`sentences.txt`. Put your own in its place.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

GIB = 2**30
LIBRARY_BYTES = GIB  # of --vram: what CUDA and its libraries take by themselves, with some room
MAX_BODY_BYTES = 1024 * 1024
MAX_TOKENS = 4096
LONGEST_ENDING = 12  # characters that are compared
GAIN = 4.0  # for each more that agrees, a place of the corpus counts so many times as much


class Generator:
    """A character model: the next one is drawn from those that followed the endings most like the text's own."""

    def __init__(self, corpus: str, device: str) -> None:
        self.alphabet = sorted(set(corpus))
        self.codes = {letter: code for code, letter in enumerate(self.alphabet)}
        self.device = device
        self.corpus = torch.tensor([self.codes[letter] for letter in corpus], device=device)

    @torch.inference_mode()
    def generate(self, text: str, max_tokens: int, seed: int) -> Iterator[str]:
        """The text's continuation, character by character; the same for the same arguments."""
        chance = torch.Generator(self.device).manual_seed(seed)
        ending = [self.codes[letter] for letter in text if letter in self.codes][-LONGEST_ENDING:]
        for _ in range(max_tokens):
            odds = torch.ones(len(self.alphabet), device=self.device) * 1e-6
            likeness = GAIN ** self._agreement(ending)[:-1] - 1
            odds.scatter_add_(0, self.corpus[1:], likeness)
            code = int(torch.multinomial(odds, 1, generator=chance))
            ending = [*ending, code][-LONGEST_ENDING:]
            yield self.alphabet[code]

    def _agreement(self, ending: list[int]) -> torch.Tensor:
        """For each place of the corpus: how many characters up to it are those of the ending."""
        agrees = torch.ones(len(self.corpus), device=self.device, dtype=torch.bool)
        count = torch.zeros(len(self.corpus), device=self.device)
        for back, code in enumerate(reversed(ending)):
            agrees &= torch.roll(self.corpus, back) == code
            count += agrees
        return count


class Service(ThreadingHTTPServer):
    """Takes connections at once, and runs one request at a time: the model cannot do more."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], generator: Generator) -> None:
        self.generator = generator
        self.turn = threading.Lock()
        super().__init__(address, Handler)


class Handler(BaseHTTPRequestHandler):
    """GET /v1/health, POST /v1/generate."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer is written in two pieces, and the second need not wait
    server: Service

    def do_GET(self) -> None:
        """Whether the model is loaded; it is, or nobody would listen."""
        if self.path == "/v1/health":
            self._answer(HTTPStatus.OK, {"status": "ok", "device": self.server.generator.device})
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": f"there is no {self.path}; try POST /v1/generate"})

    def do_POST(self) -> None:
        """{"text": …, "max_tokens": 200, "seed": 0, "stream": false} -> {"text": …}, or a line for each character."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/v1/generate" or not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # the body is not read
            self._answer(HTTPStatus.BAD_REQUEST, {"error": "POST /v1/generate, with a Content-Length of at most 1 MiB"})
            return
        try:
            asked = json.loads(self.rfile.read(int(length)))
            text, seed = str(asked["text"]), int(asked.get("seed", 0))
            max_tokens = min(MAX_TOKENS, max(1, int(asked.get("max_tokens", 200))))
        except (ValueError, TypeError, KeyError, AttributeError):
            self._answer(HTTPStatus.BAD_REQUEST, {"error": 'the body must be JSON such as {"text": "The garden"}'})
            return
        with self.server.turn:
            began = time.monotonic()
            letters = self.server.generator.generate(text, max_tokens, seed)
            if asked.get("stream"):
                self._stream(letters)
                return
            generated = "".join(letters)
        took_s = round(time.monotonic() - began, 3)
        self._answer(HTTPStatus.OK, {"text": generated, "seconds": took_s, "pid": os.getpid()})

    def _answer(self, status: HTTPStatus, facts: dict[str, Any]) -> None:
        body = json.dumps(facts).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, letters: Iterator[str]) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for letter in letters:
            line = json.dumps({"text": letter}).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  its name in the base class
        """A health check every few seconds is no news."""
        if self.path != "/v1/health":
            super().log_message(format, *args)


def main() -> None:
    """Load, then listen: whoever connects finds a model that is ready."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vram", metavar="7GiB", help="hold so much of a GPU's memory, as a large model would")
    arguments = parser.parse_args()
    held = None
    if arguments.vram and arguments.device != "cpu":
        num_bytes = int(float(arguments.vram.removesuffix("GiB")) * GIB) - LIBRARY_BYTES
        held = torch.empty(max(0, num_bytes), dtype=torch.uint8, device=arguments.device)
    corpus = Path(__file__).with_name("sentences.txt").read_text(encoding="utf-8")
    generator = Generator(corpus, arguments.device)
    "".join(generator.generate("The ", 8, seed=0))  # kernels are loaded by the first use
    host, _, port = arguments.listen.rpartition(":")
    service = Service((host, int(port)), generator)
    print(f"listening at {arguments.listen} on {arguments.device}", flush=True)
    service.serve_forever()
    del held


if __name__ == "__main__":
    main()
