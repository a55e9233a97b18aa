"""A model whose helpers outlive their parents."""

from __future__ import annotations

import subprocess

from orch import Model


class Orphans(Model):
    """Leaves a process behind with each batch; it ends when whoever started it is long gone."""

    def predict(self, inputs: list[str]) -> list[str]:
        subprocess.run(["sh", "-c", "sleep 0.1 &"], check=True)
        return inputs
