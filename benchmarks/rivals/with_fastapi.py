"""FastAPI on uvicorn with a pool of two threads, raw bytes in and out. MODEL and PORT are in the environment."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
pool = ThreadPoolExecutor(2)
app = FastAPI()


def run(body: bytes) -> bytes:
    x = np.frombuffer(body, np.float32).reshape(1, *given.shape[1:])
    return session.run(None, {given.name: x})[0].tobytes()


@app.get("/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/infer")
async def infer(request: Request) -> Response:
    body = await request.body()
    answer = await asyncio.get_running_loop().run_in_executor(pool, run, body)
    return Response(answer, media_type="application/octet-stream")


uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="error", access_log=False)
