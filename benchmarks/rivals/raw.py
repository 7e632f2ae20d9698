"""The bare engine: callers in threads that share one ONNX Runtime session and do nothing else. Prints one JSON line.

python raw.py MODEL CALLERS INTRA BATCH SECONDS
"""

import itertools
import json
import os
import statistics
import sys
import threading
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime as ort

model, callers, intra, batch, seconds = sys.argv[1], *map(float, sys.argv[2:])
options = ort.SessionOptions()
options.intra_op_num_threads = int(intra)
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
feeds = {given.name: np.random.default_rng(0).random((int(batch), *given.shape[1:]), np.float32)}
for _ in range(3):
    session.run(None, feeds)
times: list[list[float]] = [[] for _ in range(int(callers))]
until = time.perf_counter() + seconds


def call(own: list[float]) -> None:
    before = time.perf_counter()
    while before < until:
        session.run(None, feeds)
        now = time.perf_counter()
        own.append(now - before)
        before = now


began, cpu = time.perf_counter(), time.process_time()
threads = [threading.Thread(target=call, args=(own,)) for own in times]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
count = sum(map(len, times)) * batch
print(
    json.dumps(
        {
            "rate": count / (time.perf_counter() - began),
            "p50": statistics.median(itertools.chain(*times)) * 1000,
            "cpu": (time.process_time() - cpu) / count * 1e6,
        }
    )
)
