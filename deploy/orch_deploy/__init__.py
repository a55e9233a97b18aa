"""Files for what orch lives with: proxies, systemd, containers. Rendered from one instance's facts, and checked."""
