// A picture for visitors without one at hand: a boat on a lake.

const [WIDTH, HEIGHT, SHORE] = [840, 630, 400];

export function drawSample() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [WIDTH, HEIGHT];
  const context = canvas.getContext("2d");
  gradient(context, 0, SHORE, "#6ea8dc", "#f6d9a8");
  circle(context, 590, 150, 52, "#fff3c4");
  shape(context, "#7d8fb3", [0, SHORE, 0, 310, 130, 190, 250, 300, 360, 230, 500, SHORE]);
  shape(context, "#5b6f96", [330, SHORE, 560, 215, 690, 320, 760, 270, WIDTH, 350, WIDTH, SHORE]);
  shape(context, "#f4f7fb", [510, 256, 560, 215, 600, 249, 575, 262, 555, 250, 535, 268]);
  gradient(context, SHORE, HEIGHT, "#3f86a8", "#123f5c");
  ripples(context);
  for (const [left, height] of [[40, 90], [85, 120], [128, 80]]) fir(context, left, height);
  boat(context);
  return canvas;
}

function gradient(context, top, bottom, from, to) {
  const fill = context.createLinearGradient(0, top, 0, bottom);
  fill.addColorStop(0, from);
  fill.addColorStop(1, to);
  context.fillStyle = fill;
  context.fillRect(0, top, WIDTH, bottom - top);
}

function circle(context, x, y, radius, color) {
  context.fillStyle = color;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

/** A polygon: x and y of each corner in turn. */
function shape(context, color, corners) {
  context.fillStyle = color;
  context.beginPath();
  for (let i = 0; i < corners.length; i += 2) context.lineTo(corners[i], corners[i + 1]);
  context.fill();
}

function ripples(context) {
  context.fillStyle = "rgb(255 243 196 / 0.5)";
  for (let row = 0; row < 9; row++) {
    const width = 150 - 12 * row + 40 * (row % 2);
    context.fillRect(590 - width / 2 + 14 * (row % 3), SHORE + 12 + row * 22, width, 4);
  }
}

function fir(context, left, height) {
  shape(context, "#2c4a3a", [left - 26, SHORE + 6, left, SHORE - height, left + 26, SHORE + 6]);
}

function boat(context) {
  shape(context, "#c8372d", [350, 455, 350, 235, 480, 455]);
  shape(context, "#f7efe2", [338, 455, 338, 262, 262, 455]);
  shape(context, "#4a2f23", [341, 500, 341, 225, 347, 225, 347, 500]);
  shape(context, "#6b4330", [240, 470, 500, 470, 460, 522, 280, 522]);
  shape(context, "#f7efe2", [240, 470, 500, 470, 496, 478, 245, 478]);
}
