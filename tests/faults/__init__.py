"""Faults on real servers, under numbered traffic, judged by one checker (guarantees 10 and 11)."""
