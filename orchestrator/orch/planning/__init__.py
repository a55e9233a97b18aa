"""How many replicas, and where: the cards, the host, what one replica costs, and the sum that follows.

Pure: sizes, cards, footprint, planner. They take values and return values. Shells: gpu (the only user of NVML), host.
"""
