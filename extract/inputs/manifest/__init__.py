"""The manifest: which recordings there are, and which files belong to each.

    version: 1
    clips:
      - id: SN001            # also the clip's folder in the store
        video: SN001.mp4     # relative to the manifest
        labels: {au: SN001.csv}
        subject: 001

Values are taken as they are written: ``subject: 001`` is "001", ``id: yes`` is "yes" and ``id: 1e3`` is "1e3", where
YAML alone would read 1, true and a string. Only ``null``, ``~`` and an empty value mean "not given"; a clip with one of
these names needs quotes.

* ``clip``: what an entry holds; ``reading`` and ``writing``: the file, ``nodes`` and ``values`` its YAML;
* ``shared``: refuses clips of one person in two splits;
* ``update``: adds what a scan found to a manifest that a person has edited; ``edits`` changes its text.
"""

from extract.inputs.manifest.clip import Clip, Labels
from extract.inputs.manifest.paths import absolute
from extract.inputs.manifest.reading import load_manifest
from extract.inputs.manifest.shared import members_of, refuse_shared
from extract.inputs.manifest.writing import refuse_existing, write_manifest

__all__ = [
    "Clip",
    "Labels",
    "absolute",
    "load_manifest",
    "members_of",
    "refuse_existing",
    "refuse_shared",
    "write_manifest",
]
