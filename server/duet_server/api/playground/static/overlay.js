// Draws the patches of a segment on the picture: kept patches unchanged, merged ones tinted, dropped ones dark.

const DROPPED = "rgb(10 12 16 / 0.82)"; // as in the server's own overlay
const MERGED = "rgb(255 176 0 / 0.45)";
const HATCH = "rgb(255 255 255 / 0.16)";
const HATCH_STEP = 14; // pixels

/** Whether the patches leave out a part of the picture. */
export const isCropped = ({ area, picture }) => area.width < picture.width - 1 || area.height < picture.height - 1;

/**
 * @param canvas the canvas to draw on; it gets this `width` and the picture's aspect ratio.
 * @param source the picture; `described.picture` and `described.area` are in its pixels.
 * @param described one entry of a preview's `patches`.
 * @param segment one of its segments.
 */
export function drawOverlay(canvas, source, described, segment, width) {
  const scale = width / source.width;
  canvas.width = width;
  canvas.height = Math.max(1, Math.round(source.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const kinds = kindsOfPatches(described, segment);
  kinds.forEach((color, patch) => color && fillPatch(context, described, patch, color, scale));
  if (isCropped(described)) coverOutside(context, described.area, scale);
}

/** The color that covers each patch; null for a kept patch. */
function kindsOfPatches({ grid, stage1 }, segment) {
  const kinds = new Array(grid[0] * grid[1]).fill(DROPPED);
  for (const token of segment.contextual) for (const patch of stage1.contextual[token].patches) kinds[patch] = MERGED;
  for (const patch of segment.patches) kinds[patch] = null;
  return kinds;
}

function fillPatch(context, { grid, area }, patch, color, scale) {
  const [rows, columns] = grid;
  const row = Math.floor(patch / columns);
  const column = patch % columns;
  // Edges are on whole pixels, so that neighbors neither overlap nor leave a gap.
  const [left, right] = [column, column + 1].map((i) => Math.round((area.left + (i * area.width) / columns) * scale));
  const [top, bottom] = [row, row + 1].map((i) => Math.round((area.top + (i * area.height) / rows) * scale));
  context.fillStyle = color;
  context.fillRect(left, top, right - left, bottom - top);
}

function coverOutside(context, area, scale) {
  const { width, height } = context.canvas;
  context.save();
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(area.left * scale, area.top * scale, area.width * scale, area.height * scale);
  context.clip("evenodd");
  context.fillStyle = DROPPED;
  context.fillRect(0, 0, width, height);
  context.strokeStyle = HATCH;
  context.beginPath();
  for (let x = -height; x < width; x += HATCH_STEP) {
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
  }
  context.stroke();
  context.restore();
}
