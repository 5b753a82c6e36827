"""Paddock: a hardened appliance that serves local language models inside an enterprise.

The rooms, in the order in which a request meets them:

* ``core``      pure rules and values: no I/O, no clock, no randomness. Start reading here.
* ``gateway``   HTTP: guards hostile bytes and runs the ten stages of a request (``pipeline.py``).
* ``identity``  bearer token -> ``VerifiedClaims``.
* ``policy``    Rego, compiled to WebAssembly, evaluated in process.
* ``limits``    request rates and token budgets.
* ``notary``    holds the private keys; writes the audit log. Nothing else does either.
* ``audit``     reads and verifies a log; shares no code with its writer except ``core``.
* ``models``    signatures, the content-addressed store, the catalogue.
* ``warden``    loads verified models into runners.
* ``runner``    the sandboxed process that parses the model and computes.
* ``sandbox``   namespaces, Landlock, seccomp, capabilities: the layers around a runner.
* ``ipc``       typed frames and descriptors over Unix sockets, between these processes.
* ``cli``       the ``paddock`` command. ``settings`` reads configuration; ``assemble`` wires the rooms.
"""

__version__ = "0.1.0"
