"""Ranking in one process: releases, stages, the composed graph and the plain-Python handle. No Ray here."""
