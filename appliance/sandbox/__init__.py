"""The layers around a runner: namespaces, an empty root, Landlock, no capabilities, seccomp.

``layers`` builds everything but the filters; ``bpf`` compiles the filters (pure); ``seccomp`` installs them; ``probe``
is what tries to get out, from inside.
"""
