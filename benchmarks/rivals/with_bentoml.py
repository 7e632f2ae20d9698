"""BentoML with adaptive batching, JSON, one worker. MODEL and BATCH are in the environment.

bentoml serve with_bentoml:Net --port PORT
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=1)
class Net:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    @bentoml.api(batchable=True, max_batch_size=int(os.environ.get("BATCH", "8")), max_latency_ms=10_000)
    def infer(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.name: x.astype(np.float32)})[0]
