"""The tests of `pgnotifier.journal` (guarantee 18)."""
