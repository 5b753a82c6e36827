"""Limits: a coarse gate per address before authentication, then request rates and token budgets per principal."""
