"""Faults on real servers, under numbered traffic, judged by one checker (contract 10 and 11)."""
