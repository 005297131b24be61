"""Backends: how a call is computed. `select.choose` picks one; they never import one another."""
