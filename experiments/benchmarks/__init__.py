"""Measurements that anyone can repeat; each file says how."""
