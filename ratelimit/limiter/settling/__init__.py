"""Charges whose cost is known later: estimates that are committed, and outcomes that decide."""
