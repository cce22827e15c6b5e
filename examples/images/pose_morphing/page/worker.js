// Runs the two graphs beside the page, so that dragging never waits for them.
import * as ort from "./runtime/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;

const [{ size }, read, redraw] = await Promise.all([
  fetch("model/model.json").then((answer) => answer.json()),
  ort.InferenceSession.create("model/read.onnx"),
  ort.InferenceSession.create("model/redraw.onnx"),
]);
let source; // pixels and features

function points(values) {
  return new ort.Tensor("float32", Float32Array.from(values.flat()), [1, 18, 3]);
}

async function setSource({ pixels, joints }) {
  const picture = new ort.Tensor("float32", pixels, [1, 3, ...size]);
  const given = { source: picture, source_points: points(joints) };
  source = { ...given, ...(await read.run(given)) };
}

async function morph({ joints, kappa }) {
  const count = new ort.Tensor("int64", BigInt64Array.of(BigInt(kappa)), [1]);
  const found = await redraw.run({ ...source, target_points: points(joints), kappa: count });
  const kept = Object.entries(found).map(([name, tensor]) => [name, tensor.data]);
  return { ...Object.fromEntries(kept), width: found.query.dims[2], slots: found.blocks.dims[2] };
}

self.onmessage = async ({ data }) => {
  const begin = performance.now();
  try {
    if (data.pixels) await setSource(data);
    const found = await morph(data.target);
    self.postMessage({ ...found, milliseconds: performance.now() - begin });
  } catch (error) {
    self.postMessage({ error: error.message });
  }
};
self.postMessage({ ready: true });
