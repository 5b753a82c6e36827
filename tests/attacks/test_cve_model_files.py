"""Model files that broke others, offered to ``import``: each is refused with its reason, before any engine sees it.

Each test names the CVE whose class it tries. The files themselves are the named rows of ``malformed_gguf``.
"""

import ast
import gzip
import io
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import appliance
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest
from appliance.gateway.app import build_app
from appliance.ipc.frames import FrameDecoder, FrameError
from appliance.ipc.messages import FromRunner, ToRunner
from appliance.models.store import ModelStore
from tests.support.gguf_files import ARRAY, STRING, U32, array, small_model, small_model_bytes
from tests.support.malformed_gguf import MALFORMED, model_with
from tests.support.signed_models import TRUSTED, memory_file, signed, tree

PACKAGE = Path(appliance.__file__).parent
ROWS = {name: (change, reason) for name, change, reason in MALFORMED}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ModelStore]:
    with ModelStore.open(tmp_path / "store") as opened:
        yield opened


def refusal(store: ModelStore, data: bytes, name: str = "demo", bundle: bytes | None = None) -> Refused:
    """How an import ends that must be refused: rightly signed, so that only the file itself can be the reason."""
    fd = memory_file(data)
    try:
        with pytest.raises(Refused) as caught:
            store.import_model(fd, name, signed(data) if bundle is None else bundle, TRUSTED)
    finally:
        os.close(fd)
    assert store.entries() == ()
    assert store.check() == ()
    return caught.value


def refused_row(store: ModelStore, row: str) -> None:
    change, reason = ROWS[row]
    assert refusal(store, model_with(change)).detail.split(":")[0] == reason


@pytest.mark.parametrize("row", ROWS)
def test_every_named_malformed_file_is_refused_at_import_although_it_is_signed(store: ModelStore, row: str) -> None:
    refused_row(store, row)


# --- Ollama -----------------------------------------------------------------------------------------------------------

HOSTILE_NAMES = (
    "../../etc/passwd", "..", ".", "", "/", "/etc/passwd", "....//....//etc/passwd", "..%2f..%2fetc%2fpasswd",
    "%2e%2e/",
    "..\\..\\x", "sha256-" + "a" * 64, "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "A" * 64,
    "sha256:" + "g" * 64, "sha256:" + "a" * 63 + "\n", "sha256:" + "a" * 64 + "\n", "sha256:" + "a" * 64 + "\0",
    "sha256: " + "a" * 64, " sha256:" + "a" * 64, "sha512:" + "a" * 64, "md5:" + "a" * 33, "SHA256:" + "a" * 64,
    "sha256:../" + "a" * 61, "sha256:" + "../" * 21 + "a", "sha256:" + "\u0661" * 64, "sha256:" + "\uff11" * 64,
    "sha256:" + "0x" + "a" * 62, "sha256:" + "+" + "a" * 63, "sha256:" + "a" * 32 + "/" + "a" * 31,
    "sha256:" + "a" * 32 + "\0" + "a" * 31, "sha256:%61" + "a" * 61, "blobs/sha256/x", "models/demo.json", "~root",
    "$HOME", "demo\0.json", "demo/../../x", "a" * 4096, "file:///etc/passwd", "\u202edemo", "con:aux:nul",
)  # fmt: skip


def test_cve_2024_37032_and_2026_7020_digest_is_never_a_path(store: ModelStore, tmp_path: Path) -> None:
    assert len(HOSTILE_NAMES) >= 40
    before = tree(tmp_path)
    model = small_model_bytes()
    for name in HOSTILE_NAMES:
        with pytest.raises(ValueError):
            Digest(hex=name.removeprefix("sha256:"))
        for action in (
            lambda name=name: store.verify(name, TRUSTED),
            lambda name=name: store.open_verified(name, TRUSTED),
            lambda name=name: store.remove(name),
        ):
            with pytest.raises(Refused) as caught:
                action()
            assert caught.value.reason is Reason.MODEL_NOT_FOUND
        assert refusal(store, model, name, bundle=b"").reason is Reason.FIELD_INVALID
    assert tree(tmp_path) == before


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_cve_2024_37032_no_system_call_ever_names_the_hostile_path(tmp_path: Path) -> None:
    """The kernel is the witness: all entry points with all names, and not one of them in any call."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from appliance.core.refusals import Refused\n"
        "from appliance.models.store import ModelStore\n"
        "from appliance.models.oms import TrustedKeys\n"
        "from tests.attacks.test_cve_model_files import HOSTILE_NAMES\n"
        "keys = TrustedKeys({})\n"
        "with ModelStore.open(Path(sys.argv[1])) as store:\n"
        "    Path(sys.argv[1] + '/begin').exists()\n"
        "    for name in HOSTILE_NAMES:\n"
        "        for action in (lambda: store.verify(name, keys), lambda: store.remove(name),\n"
        "                       lambda: store.import_model(0, name, b'', keys)):\n"
        "            try: action()\n"
        "            except Refused: pass\n"
        "            else: raise SystemExit('accepted')\n"
        "    Path(sys.argv[1] + '/end').exists()\n"
    )
    log = tmp_path / "strace"
    root = Path(__file__).parents[2]
    command = ["strace", "-f", "-o", log, "-e", "trace=file", "-s", "4096", sys.executable, "-B", "-c", program]
    done = subprocess.run(
        [*command, tmp_path / "store", root], capture_output=True, timeout=100, check=False, stdin=subprocess.DEVNULL
    )
    if b"Operation not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    calls = log.read_text(errors="replace").partition("/begin")[2].partition("/end")[0]
    assert len(calls.splitlines()) <= 2, calls


def test_cve_2024_37032_the_grammar_of_a_digest_stands_where_digests_are_made() -> None:
    """Other modules may speak of digests only as the type; the manifest's are turned into it at once."""
    spelled = {path.name for path in PACKAGE.rglob("*.py") if re.search(r"\{64\}", path.read_text())}
    assert spelled <= {"values.py", "manifest.py"}


def _tar(member: str, data: bytes, mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo(member)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _zip(member: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(member, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "archive",
    [
        _zip("../../etc/cron.d/x", b"x"),
        _tar("../../etc/cron.d/x", b"x", "w"),
        _tar("m.gguf", small_model_bytes(), "w:gz"),
        _tar("m.gguf", small_model_bytes(), "w:xz"),
        b"\x28\xb5\x2f\xfd" + bytes(64),
    ],
    ids=["zip-slip", "tar-slip", "tar.gz", "tar.xz", "zstd"],
)
def test_cve_2024_45436_an_archive_is_not_a_model_and_nothing_is_unpacked(
    store: ModelStore, tmp_path: Path, archive: bytes
) -> None:
    before = tree(tmp_path)
    assert refusal(store, archive).detail.startswith("gguf-")
    assert refusal(store, small_model_bytes(), bundle=archive).reason is Reason.MODEL_NOT_VERIFIED
    assert tree(tmp_path) == before


def test_cve_2024_12886_a_gzip_bomb_is_never_inflated(store: ModelStore) -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(store, bomb).detail.startswith("gguf-magic")
    assert refusal(store, small_model_bytes(), bundle=bomb).reason is Reason.MODEL_NOT_VERIFIED
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    assert zlib.decompress(bomb, 31)[:1] == b"\0", "it was one"


@pytest.mark.parametrize("bundle", [b"{}", b'{"layers":[]}', b'{"dsseEnvelope":{}}', b"[" * 100_000, b'{"a":' * 10_000])
def test_cve_2025_1975_and_2025_0315_missing_fields_and_huge_counts_are_refusals(
    store: ModelStore, bundle: bytes
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(store, small_model_bytes(), bundle=bundle).reason is Reason.MODEL_NOT_VERIFIED
    for row in (
        "2^63 keys",
        "2^40 keys",
        "2^40 tensors",
        "array of 2^61",
        "text of 2^62 bytes",
        "element of 2^40 bytes",
    ):
        refused_row(store, row)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize("row", ["offset past the end", "offset 2^63", "offset 2^64 - 32", "overlap", "gap",
                                 "2^47 floats in a file of 4 kB"])  # fmt: skip
def test_cve_2026_7482_tensor_outside_the_file_is_refused(store: ModelStore, row: str) -> None:
    refused_row(store, row)


def test_cve_2026_7482_no_tensor_reaches_one_byte_past_the_end(store: ModelStore) -> None:
    data = small_model_bytes()
    without_padding = data[:-28]  # the last tensor has 36 bytes and 28 of padding
    assert refusal(store, without_padding[:-1]).detail.startswith("gguf-truncated")


def test_cve_2026_7482_there_is_no_route_that_takes_makes_or_pushes_a_model() -> None:
    app = build_app(pipeline=None, limits=None, metrics=None)  # type: ignore[arg-type]
    routes = [(route.path_format, getattr(route, "methods", None) or set()) for route in app.routes]
    assert "/v1/chat/completions" in {path for path, _methods in routes}
    words = re.compile("blob|push|pull|create|copy|quanti|upload|import|delete|file")
    assert [path for path, _methods in routes if words.search(path)] == []
    assert [path for path, methods in routes if "models" in path and methods - {"GET", "HEAD", "OPTIONS"}] == []


@pytest.mark.parametrize("row", ["alignment 0", "alignment 7", "alignment 2^31", "alignment of another type"])
def test_cve_2025_0317_alignment_that_divides_by_zero_is_refused(store: ModelStore, row: str) -> None:
    refused_row(store, row)


@pytest.mark.parametrize("row", ["block count of another type", "block count as text", "no block count", "0 blocks"])
def test_cve_2024_8063_and_2025_0312_block_count_of_a_wrong_type_is_refused(store: ModelStore, row: str) -> None:
    refused_row(store, row)


@pytest.mark.parametrize("row", ["array of 2^64-1 bytes", "text of 2^64-1 bytes", "value type 2^32-1"])
def test_cve_2024_12055_length_that_becomes_negative_is_refused(store: ModelStore, row: str) -> None:
    refused_row(store, row)


@pytest.mark.parametrize("n_bytes", [0, 1, 3, 4, 8, 23, 24, 25, 100, 1000])
def test_cve_2024_39720_file_of_a_few_bytes_is_refused(store: ModelStore, n_bytes: int) -> None:
    assert refusal(store, small_model_bytes()[:n_bytes]).detail.startswith("gguf-truncated")


# --- llama.cpp --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ["2^63 keys", "-1 tensors", "2^40 tensors", "array of 2^61", "array of 2^64-1 bytes",
                                 "text of 2^62 bytes", "element of 2^40 bytes"])  # fmt: skip
def test_cve_2024_23496_and_its_family_counts_that_overflow_are_refused(store: ModelStore, row: str) -> None:
    refused_row(store, row)


@pytest.mark.parametrize("row", ["nested array", "array of type 99", "value type 13", "type 9999"])
def test_cve_2024_32878_values_that_stay_uninitialised_are_refused(store: ModelStore, row: str) -> None:
    refused_row(store, row)


@pytest.mark.parametrize("row", [row for row in ROWS if re.search("overflow|wrap|2\\^|negative dimension", row)])
def test_cve_2025_53630_2026_27940_and_2026_33298_products_and_sums_that_wrap_are_refused(
    store: ModelStore, row: str
) -> None:
    refused_row(store, row)


@pytest.mark.parametrize("border", [2**31, 2**32, 2**62, 2**63, 2**64])
@pytest.mark.parametrize("delta", [-33, -32, -1, 0, 1, 31, 32])
def test_cve_2025_53630_every_multiplication_at_its_border_is_refused(
    store: ModelStore, border: int, delta: int
) -> None:
    """Elements, elements x 4 bytes and offset + bytes, each at and around the border."""
    value = (border + delta) % 2**64
    for dimensions in ([value], [value // 4 or 1, 4], [value // 16 or 1, 2, 8]):
        gguf = small_model()
        gguf.tensors[0].dimensions = dimensions
        assert refusal(store, gguf.build()).detail.startswith("gguf-tensor")
    gguf = small_model()
    gguf.tensors[1].offset = value
    assert refusal(store, gguf.build()).detail.startswith("gguf-tensor-offset")


def test_cve_2025_49847_token_longer_than_any_buffer_is_refused(store: ModelStore) -> None:
    """The engine copied a token into a buffer whose length it held as a signed 32-bit number."""
    gguf = small_model()
    claimed = struct.pack("<IQ", STRING, 5) + struct.pack("<Q", 2**31 + 1)
    gguf.put("tokenizer.ggml.tokens", ARRAY, claimed)
    assert refusal(store, gguf.build()).detail.startswith("gguf-string-too-long")
    gguf.put("tokenizer.ggml.tokens", ARRAY, array(STRING, ["<unk>", "<s>", "</s>", "<0x0A>", "a" * (8 * 2**20)]))
    assert refusal(store, gguf.build()).detail.startswith("gguf-string-too-long")


@pytest.mark.parametrize("row", ["byte token <0x-1>", "byte token that is not hex", "byte token of one digit",
                                 "byte token of three digits"])  # fmt: skip
def test_plamo_2_byte_token_that_indexes_backwards_is_refused(store: ModelStore, row: str) -> None:
    refused_row(store, row)


@pytest.mark.parametrize("row", [row for row in ROWS if re.search("of another type|as texts|that are numbers", row)])
def test_llama_cpp_26690_array_elements_of_another_type_are_refused(store: ModelStore, row: str) -> None:
    refused_row(store, row)


@pytest.mark.parametrize("row", ["513 blocks", "2^32-1 blocks", "1025 experts", "2^32-1 experts"])
def test_llama_cpp_more_blocks_or_experts_than_its_tables_hold_are_refused(store: ModelStore, row: str) -> None:
    refused_row(store, row)


def test_llama_cpp_27166_a_media_projector_is_not_a_model(store: ModelStore) -> None:
    """An mmproj file as MiniCPM-V's: architecture ``clip``, no vocabulary."""
    gguf = small_model()
    gguf.keys = [item for item in gguf.keys if not str(item[0]).startswith(("tokenizer.", "llama."))]
    gguf.set("general.architecture", STRING, "clip")
    gguf.set("clip.vision.block_count", U32, 27)
    assert refusal(store, gguf.build()).detail.startswith("gguf-vocabulary")


# --- vLLM: objects from bytes -----------------------------------------------------------------------------------------

PICKLES = (
    b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
    b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
    b"PK\x03\x04archive/data.pkl",
)


@pytest.mark.parametrize("data", PICKLES)
def test_cve_2025_32444_and_its_family_a_pickle_is_not_a_message_and_not_a_model(
    store: ModelStore, data: bytes
) -> None:
    assert refusal(store, data).detail.startswith("gguf-")
    for kind in (ToRunner, FromRunner):
        for framed in (data, len(data).to_bytes(4, "big") + data, len(data).to_bytes(4, "little") + data):
            with pytest.raises(FrameError):
                FrameDecoder(kind).decode(framed)


def test_cve_2025_24357_nothing_here_can_load_an_object_from_bytes() -> None:
    """As ``test_architecture`` for our own source; here for what the engine's Python side would bring along."""
    forbidden = {"pickle", "marshal", "shelve", "torch", "joblib", "dill", "yaml"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            assert not {name.partition(".")[0] for name in names} & forbidden, path
