"""The model of vit.py in a bare loop: one process, nothing of orch's serving, batches that lie ready in pinned memory.

`python vit_bare.py DEVICE SETTINGS` loads it and says so. Then, for each line of JSON,
{"save": path, "pictures": n} writes the scores of the first n pictures, float32 (n, classes), to an .npy file, and
{"batch": n, "ahead": bool, "ramp_s": s, "seconds": s} runs batches of n pictures, one after the other, and says how
many images that were in a second. ahead: a batch is copied and launched while the one before it still runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import children
import numpy as np
import torch
from models.vit import Scores
from pictures import picture

WARMUP = 3


class Slot:
    """One batch on its way: its pictures and its answers on the host, both pinned, and the pictures on the device."""

    def __init__(self, model: Scores, pictures: torch.Tensor) -> None:
        self.on_gpu = model.device.type == "cuda"
        self.model = model
        self.host = pictures.pin_memory() if self.on_gpu else pictures
        self.images = torch.empty_like(pictures, device=model.device)
        self.answers = torch.empty(len(pictures), model.sizes[-1], pin_memory=self.on_gpu)
        self.done: Any = torch.cuda.Event() if self.on_gpu else None
        self.copying: Any = torch.cuda.Stream() if self.on_gpu else None  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Launch all of it; the batch before it in this slot is done."""
        if self.on_gpu:
            with torch.cuda.stream(self.copying):
                self.images.copy_(self.host, non_blocking=True)
            torch.cuda.current_stream().wait_stream(self.copying)
        else:
            self.images.copy_(self.host)
        self.answers.copy_(self.model.scores(self.images), non_blocking=True)
        if self.on_gpu:
            self.done.record()

    def wait(self) -> None:
        """Until its answers are on the host."""
        if self.on_gpu:
            self.done.synchronize()


def rate(slots: list[Slot], batch: int, ramp_s: float, seconds: float) -> float:
    """Images per second."""
    for _ in range(WARMUP):
        for slot in slots:
            slot.start()
            slot.wait()
    for slot in slots[1:]:
        slot.start()
    finished, counted, turn = 0, 0, 0
    begin = time.perf_counter() + ramp_s
    started = now = 0.0
    while now < begin + seconds:
        slots[turn].start()
        turn = (turn + 1) % len(slots)
        slots[turn].wait()
        now = time.perf_counter()
        finished += 1
        if not started and now >= begin:
            started, counted = now, finished
    for slot in slots:
        slot.wait()
    return (finished - counted) * batch / (now - started)


def main(argv: list[str]) -> None:
    """Load, and follow orders."""
    orders, say = children.orders()
    device, settings = argv[0], json.loads(argv[1])
    model = Scores(**settings)
    model.load(device)
    say({"pid": os.getpid()})
    with torch.inference_mode():
        for order in orders:
            if "save" in order:
                count = order["pictures"]
                slot = Slot(model, torch.from_numpy(np.stack([picture(n) for n in range(count)])))
                slot.start()
                slot.wait()
                np.save(order["save"], slot.answers.numpy())
                say({})
                continue
            batch = order["batch"]
            pictures = torch.from_numpy(np.stack([picture(n) for n in range(batch)]))
            slots = [Slot(model, pictures) for _ in range(2 if order["ahead"] else 1)]
            say({"images_per_s": rate(slots, batch, order["ramp_s"], order["seconds"])})


if __name__ == "__main__":
    main(sys.argv[1:])
