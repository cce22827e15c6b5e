// The joints of a person on a canvas: drawn, and dragged.
const REACH = 14; // how far from a joint one may press, in pixels of the screen

export class Skeleton {
  constructor(canvas, model, onChange) {
    Object.assign(this, { canvas, model, onChange, joints: [], held: null, picture: null });
    [canvas.height, canvas.width] = model.size.map((side) => side * model.scale);
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", () => (this.held = null));
    canvas.addEventListener("dblclick", (event) => this.remove(event));
  }

  set(joints, picture = null) {
    this.joints = joints.map((joint) => [...joint]);
    this.picture = picture;
    this.draw();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const [height, width] = this.model.size;
    const x = ((event.clientX - box.left) / box.width) * width - 0.5;
    const y = ((event.clientY - box.top) / box.height) * height - 0.5;
    return [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
  }

  nearest(event) {
    const [x, y] = this.place(event);
    const reach = (REACH * this.model.size[0]) / this.canvas.getBoundingClientRect().height;
    let best = null, least = reach;
    this.joints.forEach(([jx, jy, there], joint) => {
      const far = Math.hypot(jx - x, jy - y);
      if (there && far < least) [best, least] = [joint, far];
    });
    return best;
  }

  press(event) {
    this.held = this.nearest(event);
    if (this.held !== null) this.canvas.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (this.held === null) {
      this.canvas.style.cursor = this.nearest(event) === null ? "default" : "grab";
      return;
    }
    this.joints[this.held] = [...this.place(event), 1];
    this.changed();
  }

  remove(event) {
    const joint = this.nearest(event);
    if (joint === null) return;
    this.joints[joint] = [-1, -1, 0];
    this.changed();
  }

  changed() {
    this.draw();
    this.onChange();
  }

  draw() {
    const { canvas, model } = this;
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = false;
    if (this.picture) pen.drawImage(this.picture, 0, 0, canvas.width, canvas.height);
    const at = ([x, y]) => [(x + 0.5) * model.scale, (y + 0.5) * model.scale];
    pen.lineWidth = 3;
    model.limbs.forEach(([start, end], limb) => {
      if (!this.joints[start][2] || !this.joints[end][2]) return;
      pen.strokeStyle = `hsl(${(360 * limb) / model.limbs.length} 85% 45%)`;
      pen.beginPath();
      pen.moveTo(...at(this.joints[start]));
      pen.lineTo(...at(this.joints[end]));
      pen.stroke();
    });
    this.joints.forEach((joint, number) => {
      if (!joint[2]) return;
      pen.fillStyle = `hsl(${(360 * number) / this.joints.length} 85% 45%)`;
      pen.beginPath();
      pen.arc(...at(joint), 4.5, 0, 2 * Math.PI);
      pen.fill();
    });
  }
}
