"""Moving signed models between appliances and OCI registries.

Pure, in the order in which a transfer meets them: ``origin`` (URLs, and what may follow a redirect), ``reference``,
``media``, ``manifest``, ``challenge``. Then the network: ``client`` (one HTTP exchange), ``registry`` (the
distribution API), ``download``, ``upload``. They run in a process of their own (``__main__``, which ``confine`` fences
in) that takes one of ``jobs`` and holds neither the store nor its keys; ``partial`` is its parent's half: the file it
fills.

Trusts: nothing that a registry sends, nor anything that the process says about it.
Promises: no credential leaves for an origin that the operator did not name; no byte is read without a known bound.
Not here: whether a model is signed and may be imported (``models.oms``, ``models.store``).
"""
