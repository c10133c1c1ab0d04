"""Proof by fault injection: proxies, crash points and dead daemons under load, and a count of what went wrong."""
