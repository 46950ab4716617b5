// The sample picture, of the kind that the demo model knows: a few shapes and a letter on a busy background.

const SIDE = 672;
const INSIDE = 0.85; // half of a square's side, relative to its radius

export function drawSample() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  context.fillStyle = "#7d7f83";
  context.fillRect(0, 0, SIDE, SIDE);
  strokes(context);
  circle(context, 140, 150, 72, "#d71e23");
  star(context, 540, 130, 72, "#f5dc1e");
  square(context, 330, 340, 46, "#2346dc");
  letter(context, "K", 130, 540, 72, "#f8f8f8");
  triangle(context, 520, 530, 76, "#199b32");
  return canvas;
}

function strokes(context) {
  for (let i = 0; i < 18; i++) {
    const tone = 95 + ((i * 37) % 70);
    context.strokeStyle = `rgb(${tone} ${tone - 4 + (i % 9)} ${tone + 3})`;
    context.lineWidth = 4 + ((i * 5) % 16);
    context.beginPath();
    context.moveTo((i * 211) % SIDE, (i * 97) % SIDE);
    context.lineTo((i * 149 + 300) % SIDE, (i * 263 + 420) % SIDE);
    context.stroke();
  }
}

function circle(context, x, y, radius, color) {
  context.fillStyle = color;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function square(context, x, y, radius, color) {
  context.fillStyle = color;
  context.fillRect(x - INSIDE * radius, y - INSIDE * radius, 2 * INSIDE * radius, 2 * INSIDE * radius);
}

function triangle(context, x, y, radius, color) {
  polygon(context, color, [[x, y - radius], [x + 0.95 * radius, y + 0.8 * radius], [x - 0.95 * radius, y + 0.8 * radius]]);
}

function star(context, x, y, radius, color) {
  const corner = (_, i) => {
    const [reach, angle] = [i % 2 ? 0.42 * radius : radius, (i * Math.PI) / 5 - Math.PI / 2];
    return [x + reach * Math.cos(angle), y + reach * Math.sin(angle)];
  };
  polygon(context, color, Array.from({ length: 10 }, corner));
}

function letter(context, text, x, y, radius, color) {
  context.fillStyle = color;
  context.font = `bold ${2.3 * radius}px sans-serif`;
  [context.textAlign, context.textBaseline] = ["center", "middle"];
  context.fillText(text, x, y);
}

function polygon(context, color, corners) {
  context.fillStyle = color;
  context.beginPath();
  for (const corner of corners) context.lineTo(...corner);
  context.fill();
}
