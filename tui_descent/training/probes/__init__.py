"""Measurements that take passes of their own, between two steps."""
