"""Tests of `pgnotifier.testing`."""
