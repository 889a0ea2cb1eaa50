"""Reads a batch with the classes of SAEDashboard and writes it again. Runs in an environment with sae-dashboard.

PEERS/bin/python tests/peers/saedashboard_batch.py BATCH.json
"""

import json
import sys
from pathlib import Path

from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

batch = NeuronpediaDashboardBatch(**json.loads(Path(sys.argv[1]).read_text()))
json.dump(batch.to_dict(), sys.stdout)
