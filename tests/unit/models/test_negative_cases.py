"""How many ways of lying about a model are refused: the tables of the other tests, counted."""

from tests.unit.core import test_catalogue as judged
from tests.unit.core import test_catalogue_root as root
from tests.unit.core import test_manifest as manifest
from tests.unit.models import test_catalogue as catalogue
from tests.unit.models import test_certificates as certificates
from tests.unit.models import test_oms as bundles
from tests.unit.models import test_roots as roots
from tests.unit.models import test_signers as signers

TABLES = {
    "bundles in key mode": bundles.ATTACKS,
    "bundles in certificate mode": certificates.BUNDLES,
    "certificate chains": certificates.CHAINS,
    "numbers of signers": signers.CASES,
    "statements": manifest.REFUSED,
    "shards": manifest.BAD_SHARDS,
    "catalogue envelopes": catalogue.ENVELOPES,
    "catalogue documents": judged.MALFORMED,
    "catalogues that are not current": judged.NOT_CURRENT,
    "models that a catalogue does not permit": judged.NOT_PERMITTED,
    "documents that hand over": root.MALFORMED,
    "handings over": roots.STEPS,
}


def test_there_are_at_least_150_negative_cases() -> None:
    for name, table in TABLES.items():
        labels = [row[0] for row in table]
        assert len(set(labels)) == len(labels), name
        print(f"{len(table):5}  {name}")
    total = sum(len(table) for table in TABLES.values())
    print(f"{total:5}  negative bundle, manifest and catalogue cases")
    assert total >= 150
