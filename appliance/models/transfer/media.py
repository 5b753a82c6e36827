"""The media types of models in registries: a closed table, so that an unknown kind of layer is a refusal.

Archives and compressed layers are in none of its lists: a tar can name paths and a gzip can be a bomb (CVE-2024-45436,
CVE-2024-12886), and a GGUF gains nothing from either. Layers that change what a model answers but that its signature
does not cover (adapters, projectors, code) are refused as well, not left out.

Trusts: nothing; this is a table.
Promises: a type stands in at most one list.
Not here: what is inside a layer (the signature and ``core.gguf``).
"""

from typing import Final

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
EMPTY: Final = "application/vnd.oci.empty.v1+json"

BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
MODELPACK_ARTIFACT: Final = "application/vnd.cncf.model.manifest.v1+json"
MODELPACK_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
MODELPACK_WEIGHT: Final = "application/vnd.cncf.model.weight.v1.raw"

MANIFESTS: Final = frozenset({MANIFEST, DOCKER_MANIFEST})
INDEXES: Final = frozenset({INDEX, DOCKER_INDEX})

MODELS: Final = frozenset({MODELPACK_WEIGHT, "application/vnd.docker.ai.gguf.v3", "application/vnd.ollama.image.model"})
"""One GGUF file, as it is."""

NOT_FETCHED: Final = frozenset(
    {
        "application/vnd.cncf.model.doc.v1.raw",
        "application/vnd.cncf.model.weight.config.v1.raw",
        "application/vnd.docker.ai.chat.template.jinja",
        "application/vnd.docker.ai.license",
        "application/vnd.ollama.image.license",
        "application/vnd.ollama.image.messages",
        "application/vnd.ollama.image.params",
        "application/vnd.ollama.image.system",
        "application/vnd.ollama.image.template",
    }
)
"""Texts beside a model. What counts is inside the GGUF, where the signature covers it; these are never even read."""
