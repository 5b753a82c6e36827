"""Policy: an input document in, the raw answer of the operator's Rego out. Rules: ``policies/``."""
