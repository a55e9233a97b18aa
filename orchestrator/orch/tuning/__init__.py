"""`orch tune`: every configuration of a grid is run and measured, and the one that pays is told."""
