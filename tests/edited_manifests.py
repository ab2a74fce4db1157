"""Manifests that a person edited, and how the tests add to them."""

from pathlib import Path

from extract.inputs.datasets import folder
from extract.inputs.manifest.update import Made, SplitRule, make

BY_VIDEO = SplitRule("source_video", 0.1, 0.1, 0)

EDITED = """\
# People of the first study
version: 1   # of the format
clips:
- id: talk            # was a
  video: v/a.mp4
  subject: anna
# - id: out, too dark
- id: b
  video: 'v/b.mp4'

  subject: ben
  # end of the study
"""

HEAD = "version: 1\nclips:\n"
A, B = "- id: a\n  video: v/a.mp4\n", "- id: b\n  video: v/b.mp4\n"


def update(path: Path, root: Path, rule: SplitRule | None = None) -> Made:
    """What ``extract manifest folder ROOT -o PATH --update`` does."""
    return make(path, folder.scan_folder(root).clips, "", root=root, own=folder.own_file, update=True, rule=rule)
