"""Steering that watches the run and answers to it."""
