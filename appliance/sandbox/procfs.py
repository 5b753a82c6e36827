"""What the kernel's ``/proc`` says, taken apart. Pure: the callers read the files.

Trusts: the kernel to write as proc(5) says.
Promises: ``ValueError``, ``KeyError`` or ``IndexError`` for anything else.
Not here: what is asked of it (``given``, ``warden.fence``, ``warden.cgroups``, ``models.verity``).
"""


def status_fields(status: str) -> dict[str, str]:
    """``/proc/<pid>/status``: name -> value (proc_pid_status(5))."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in status.splitlines())}


class Mount:
    """One line of ``/proc/<pid>/mountinfo`` (proc_pid_mountinfo(5))."""

    def __init__(self, line: str) -> None:
        before, _, after = line.partition(" - ")
        fields = before.split()
        self.number = fields[0]
        self.root, self.point = fields[3:5]
        self.read_only = "ro" in fields[5].split(",")
        self.is_a_copy = any(field.startswith("master:") for field in fields[6:])
        self.kind = after.split()[0]
        self.options = frozenset(after.split()[2].split(","))


def mounts(mountinfo: str) -> list[Mount]:
    return [Mount(line) for line in mountinfo.splitlines()]
