// Pictures between files, canvases and the network's numbers from -1 to 1, channel by channel.
export async function loadPicture(blob, [height, width]) {
  const bitmap = await createImageBitmap(blob);
  const canvas = blank(height, width);
  const scale = Math.max(width / bitmap.width, height / bitmap.height); // fills it; what is over is cut off
  const [left, top] = [(width - bitmap.width * scale) / 2, (height - bitmap.height * scale) / 2];
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, left, top, bitmap.width * scale, bitmap.height * scale);
  const move = ([x, y, there]) =>
    there ? [(x + 0.5) * scale + left - 0.5, (y + 0.5) * scale + top - 0.5, 1] : [-1, -1, 0];
  return { canvas, move };
}

export function toNumbers(canvas) {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const area = width * height;
  return Float32Array.from({ length: 3 * area }, (_, i) => {
    return data[4 * (i % area) + Math.floor(i / area)] / 127.5 - 1;
  });
}

export function fromNumbers(numbers, [height, width]) {
  const canvas = blank(height, width);
  const area = height * width;
  const picture = new ImageData(width, height);
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = Math.round((numbers[c * area + i] + 1) * 127.5);
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

function blank(height, width) {
  const canvas = document.createElement("canvas");
  [canvas.height, canvas.width] = [height, width];
  return canvas;
}

// OpenPose's JSON with 18 points, or a list of 18 [x, y, confidence].
export function readJoints(text, least = 0.3) {
  const said = JSON.parse(text);
  const flat = said.people?.[0]?.pose_keypoints_2d ?? (Array.isArray(said) ? said.flat() : []);
  if (flat.length !== 54 || !flat.every(Number.isFinite)) {
    throw new Error("expected the 18 key points of one person, x, y and confidence each");
  }
  return Array.from({ length: 18 }, (_, i) => {
    const [x, y, sure] = flat.slice(3 * i, 3 * i + 3);
    return sure > least ? [x, y, 1] : [-1, -1, 0];
  });
}
