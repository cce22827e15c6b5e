import { drawLines, keysOf } from "./lines.js";
import { Morpher } from "./morpher.js";
import { fromNumbers, loadPicture, readJoints, toNumbers } from "./pictures.js";
import { Skeleton } from "./skeleton.js";

const find = (id) => document.getElementById(id);
const say = (text) => (find("status").textContent = text);
const [model, people] = await Promise.all(
  ["model/model.json", "people/people.json"].map((name) => fetch(name).then((x) => x.json())),
);
const page = { morph: null, morphs: 0, firstAfter: null, failed: null }; // the tests look at it too
globalThis.page = page;

const pose = new Skeleton(find("pose"), model, () => redraw());
const source = new Skeleton(find("source"), model, () => reread());
const morpher = new Morpher(show, fail);
page.target = () => pose.joints;
page.openOwn = openOwn;

function redraw() {
  morpher.ask(pose.joints, Number(find("kappa").value));
}

function reread() {
  page.pixels = toNumbers(source.picture);
  page.sourceJoints = source.joints;
  morpher.setSource(page.pixels, source.joints);
  redraw();
}

function show(morph) {
  page.morph = morph;
  page.morphs += 1;
  page.firstAfter ??= performance.now() - page.loaded;
  const canvas = find("morph");
  canvas.getContext("2d").drawImage(fromNumbers(morph.image, model.size), 0, 0);
  find("lines").replaceChildren();
  say(`drawn in ${morph.milliseconds.toFixed(0)} ms`);
}

function fail(message) {
  page.failed = message;
  say(message);
}

function point(event) {
  if (!page.morph) return;
  const box = event.target.getBoundingClientRect();
  const [height, width] = model.size;
  const row = Math.floor(((event.clientY - box.top) / box.height) * height);
  const column = Math.floor(((event.clientX - box.left) / box.width) * width);
  if (row < 0 || column < 0 || row >= height || column >= width) return;
  const keys = keysOf([row, column], page.morph, model);
  drawLines(find("lines"), find("morph"), find("source"), [row, column], keys, model.size);
}

async function choose(person) {
  const blob = await fetch(`people/${person.picture}`).then((x) => x.blob());
  const { canvas } = await loadPicture(blob, model.size);
  source.set(person.joints, canvas);
  reread();
}

async function openOwn(files) {
  const picture = files.find((file) => file.type.startsWith("image/"));
  if (!picture) return say("choose a picture, and perhaps the JSON of its key points with it");
  const points = files.find((file) => file.name.endsWith(".json"));
  try {
    const { canvas, move } = await loadPicture(picture, model.size);
    const joints = points ? readJoints(await points.text()).map(move) : model.standing;
    source.set(joints, canvas);
    reread();
    say(`${picture.name}: drag the joints on it to where they are`);
  } catch (error) {
    fail(`${picture.name}: ${error.message}`);
  }
}

function options(select, onChange) {
  people.forEach(({ name }, number) => select.add(new Option(name, number)));
  select.addEventListener("change", () => onChange(people[Number(select.value)]));
}

[find("morph").height, find("morph").width] = model.size;
find("kappa").max = model.most;
find("kappa").value = find("count").value = model.kappa;
find("kappa").addEventListener("input", () => {
  find("count").value = find("kappa").value;
  redraw();
});
options(find("people"), choose);
options(find("poses"), (person) => {
  pose.set(person.joints);
  redraw();
});
find("own").addEventListener("change", (event) => openOwn([...event.target.files]));
find("morph").addEventListener("pointermove", point);
find("morph").addEventListener("pointerleave", () => find("lines").replaceChildren());

await morpher.ready;
page.loaded = performance.now();
find("poses").value = people.length > 1 ? 1 : 0;
pose.set(people[Number(find("poses").value)].joints);
await choose(people[0]);
