"""Distributed computation: device mesh, sharding rules, processes, and cost of collectives."""
