"""The command line: reads settings, calls one function of orch, says what came of it. It decides nothing."""
