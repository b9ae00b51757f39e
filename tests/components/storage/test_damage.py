"""One flipped byte in every kind of file of a finished store: the next run ends with the undisturbed bytes.

What the trainer makes takes seconds to be made again: one of its files is tried here, and no figure; all of them by
`benchmarks/damage.py`.
"""

from __future__ import annotations

import shutil

import pytest

from tests.support.campaign import Campaign, figures
from tests.support.small import write_config

TRAINED = ("train ", "decay ")


@pytest.mark.slow
def test_a_flipped_byte_in_every_kind_of_file_is_healed(tmp_path, reference_run, monkeypatch):
    shutil.copytree(reference_run, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    campaign = Campaign(tmp_path, write_config(tmp_path))
    kinds = campaign.kinds()
    chosen = {
        kind: paths
        for kind, paths in kinds.items()
        if not kind.startswith(TRAINED) and "figures/" not in kind
    }
    chosen["decay export/model.safetensors"] = kinds["decay export/model.safetensors"]
    for kind, paths in chosen.items():
        campaign.strike(kind, campaign.random.choice(paths))
    print(figures(campaign.outcomes))
    parts = [one for one in campaign.outcomes if one.what == "healed"]
    assert len(parts) > 25, figures(campaign.outcomes)
