"""``python -m appliance.models.transfer``: one job, in a process with the network and without the store.

Trusts: its parent, for the job on stdin and the descriptor that it names.
Promises: one last line says how it ended; a status other than 0 without one is a fault.
Not here: importing what was fetched (the parent, by the ordinary verified import).
"""

import sys
from time import monotonic

from appliance.models.transfer import jobs
from appliance.models.transfer.client import Client, tls_context
from appliance.models.transfer.confine import confine
from appliance.models.transfer.download import fetch, resolve
from appliance.models.transfer.manifest import Descriptor
from appliance.models.transfer.media import MODELPACK_WEIGHT
from appliance.models.transfer.refusal import TransferRefused
from appliance.models.transfer.registry import Registry
from appliance.models.transfer.upload import push
from appliance.sandbox.layers import LayerMissing

_TELL_EVERY_SECONDS = 0.1


class _Teller:
    """Says how far a transfer is, not too often."""

    def __init__(self) -> None:
        self._done = 0
        self._next = 0.0

    def __call__(self, n_bytes: int) -> None:
        self._done += n_bytes
        if monotonic() >= self._next:
            self._next = monotonic() + _TELL_EVERY_SECONDS
            _say(jobs.Moved(done_bytes=self._done))


def main() -> int:
    job = jobs.decode_job(sys.stdin.buffer.read(jobs.MAX_JOB_BYTES))
    try:
        tls = tls_context(job.access.ca_pem)
        confine(
            allow_degraded=frozenset(job.access.allow_degraded),
            max_file_bytes=job.size_bytes if isinstance(job, jobs.Fetch) else 0,
        )
        _say(_run(job, Client(tls)))
    except TransferRefused as error:
        _say(jobs.No(reason=error.reason, detail=error.detail))
    except LayerMissing as error:
        _say(jobs.No(reason="layer-missing", detail=str(error)))
    except OSError as error:  # of the file: those of the network are TransferRefused
        _say(jobs.No(reason="file-failed", detail=error.strerror or "it broke"))
    return 0


def _run(job: jobs.Job, client: Client) -> jobs.Found | jobs.Done:
    reference = job.place.reference()
    registry = Registry(
        client,
        reference,
        credentials=job.access.credentials,
        auth_origins=frozenset(job.access.auth_origins),
        actions="pull,push" if isinstance(job, jobs.Push) else "pull",
    )
    if isinstance(job, jobs.Resolve):
        found = resolve(registry, reference)
        return jobs.Found(
            manifest_digest=found.manifest_digest,
            model_digest=found.model_digest,
            model_bytes=found.model_bytes,
            unverified_bundles=found.unverified_bundles,
        )
    if isinstance(job, jobs.Fetch):
        fetch(registry, job.digest, job.size_bytes, job.fd, _Teller())
        return jobs.Done()
    model = Descriptor(media_type=MODELPACK_WEIGHT, digest=job.digest, size_bytes=job.size_bytes)
    if not isinstance(reference.target, str):
        raise TransferRefused("reference-malformed", "a push needs a tag")
    digest = push(
        registry, reference.target, name=job.name, model=model, fd=job.fd, bundles=job.bundles, progress=_Teller()
    )
    return jobs.Done(manifest_digest=digest)


def _say(event: jobs.Event) -> None:
    sys.stdout.buffer.write(jobs.encode(event) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    raise SystemExit(main())
