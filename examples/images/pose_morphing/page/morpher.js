// Asks the worker for morphs, one at a time; of questions that come meanwhile, the newest counts.
export class Morpher {
  constructor(onMorph, onError) {
    this.worker = new Worker("worker.js", { type: "module" });
    this.ready = new Promise((resolve) => {
      this.worker.onmessage = ({ data }) => {
        if (data.ready) return resolve();
        this.busy = false;
        if (data.error) onError(data.error);
        else onMorph(data);
        this.next();
      };
    });
    this.worker.onerror = (event) => onError(event.message);
    this.source = null; // until the worker has it
    this.target = null;
  }

  setSource(pixels, joints) {
    this.source = { pixels, joints };
  }

  ask(joints, kappa) {
    this.target = { joints, kappa };
    this.next();
  }

  next() {
    if (this.busy || !this.target) return;
    this.busy = true;
    this.worker.postMessage({ ...this.source, target: this.target });
    this.source = this.target = null;
  }
}
