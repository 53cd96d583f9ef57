"""Requests that wait for their turn by a leaking bucket."""
