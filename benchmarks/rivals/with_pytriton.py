"""PyTriton: Triton with a Python model and its dynamic batcher. MODEL, PORT and BATCH are in the environment."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
given, gives = session.get_inputs()[0], session.get_outputs()[0]


@batch
def infer(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"y": session.run(None, {given.name: x})[0]}


port = int(os.environ["PORT"])
config = TritonConfig(http_address="127.0.0.1", http_port=port, grpc_port=port + 1, metrics_port=port + 2)
with Triton(config=config) as triton:
    triton.bind(
        model_name="net",
        infer_func=infer,
        inputs=[Tensor(name="x", dtype=np.float32, shape=tuple(given.shape[1:]))],
        outputs=[Tensor(name="y", dtype=np.float32, shape=tuple(gives.shape[1:]))],
        config=ModelConfig(
            max_batch_size=int(os.environ["BATCH"]), batcher=DynamicBatcher(max_queue_delay_microseconds=0)
        ),
    )
    triton.serve()
