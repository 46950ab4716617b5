// Prepares pictures to be sent and drawn: upright, on white, and no larger than a vision tower can use.

const LONGEST_SIDE = 1024; // pixels
const JPEG_QUALITY = 0.92;

/** A picture from a file. Throws an Error whose message is a sentence for the visitor. */
export async function readPicture(file) {
  const name = file.name || "The pasted file";
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${name} is not a picture that this browser can read.`);
  });
  return toPicture(bitmap, name, file.type === "image/png" ? "image/png" : "image/jpeg");
}

/** The picture as pixels (`canvas`) and as the request carries it (`url`). */
export function toPicture(source, name, type) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(source.width, source.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(source.width * scale));
  canvas.height = Math.max(1, Math.round(source.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as vLLM does for transparent pixels
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return { canvas, name, url: canvas.toDataURL(type, JPEG_QUALITY) };
}
