// Where a pixel was copied from: the keys that the finest attention reads for it, and their weights.
const SHOWN = 12; // of a pixel's keys
const LEAST = 0.01; // weight

export function keysOf(pixel, morph, model) {
  const [, width] = model.size;
  const [row, column] = pixel;
  const across = width / (model.block[1] * model.cell[1]);
  const cell =
    Math.floor(row / (model.block[0] * model.cell[0])) * across +
    Math.floor(column / (model.block[1] * model.cell[1]));
  const query = (row * width + column) * morph.width;
  const keys = [];
  for (let slot = 0; slot < morph.slots; slot++) {
    const block = morph.blocks[cell * morph.slots + slot];
    if (block < 0) continue;
    for (const place of pixelsOf(block, model)) {
      const key = (place[0] * width + place[1]) * morph.width;
      let logit = 0;
      for (let i = 0; i < morph.width; i++) logit -= (morph.query[query + i] - morph.key[key + i]) ** 2;
      keys.push({ place, logit });
    }
  }
  return weighted(keys);
}

function pixelsOf(block, { size, block: [height, width] }) {
  const across = size[1] / width;
  const [top, left] = [Math.floor(block / across) * height, (block % across) * width];
  return Array.from({ length: height * width }, (_, i) => [
    top + Math.floor(i / width),
    left + (i % width),
  ]);
}

function weighted(keys) {
  const most = Math.max(...keys.map(({ logit }) => logit));
  const all = keys.map(({ place, logit }) => ({ place, weight: Math.exp(logit - most) }));
  const total = all.reduce((sum, { weight }) => sum + weight, 0);
  return all
    .map(({ place, weight }) => ({ place, weight: weight / total }))
    .filter(({ weight }) => weight > LEAST)
    .sort((a, b) => b.weight - a.weight)
    .slice(0, SHOWN);
}

export function drawLines(svg, from, to, pixel, keys, size) {
  const origin = svg.getBoundingClientRect();
  const at = (canvas, [row, column]) => {
    const box = canvas.getBoundingClientRect();
    return [
      box.left - origin.left + ((column + 0.5) / size[1]) * box.width,
      box.top - origin.top + ((row + 0.5) / size[0]) * box.height,
    ];
  };
  svg.replaceChildren(...keys.flatMap(({ place, weight }) => shapes(at(from, pixel), at(to, place), weight)));
}

function shapes([x1, y1], [x2, y2], weight) {
  const opacity = Math.min(1, 0.15 + weight);
  return [
    shape("line", { x1, y1, x2, y2, stroke: "#e6007e", "stroke-width": 1.5, opacity }),
    shape("rect", { x: x2 - 2, y: y2 - 2, width: 4, height: 4, fill: "#e6007e", opacity }),
  ];
}

function shape(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
