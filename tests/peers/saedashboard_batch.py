"""A batch as SAEDashboard's own classes read it, written again; run by an interpreter that has sae-dashboard.

PEERS/bin/python tests/peers/saedashboard_batch.py BATCH.json
"""

import json
import sys
from pathlib import Path

from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

batch = NeuronpediaDashboardBatch(**json.loads(Path(sys.argv[1]).read_text()))
json.dump(batch.to_dict(), sys.stdout)
